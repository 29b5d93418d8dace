"""A model over examples: batches, layouts, the exact scan, quality, speed, and work that processes share."""
