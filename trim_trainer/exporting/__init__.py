"""The same model for another runtime, or with fewer bits: the libraries of those do the work, and what they leave is verified."""
