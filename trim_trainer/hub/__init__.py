"""A trimmed model becomes a repository: card, staging, upload, reading back. Nothing here loads torch."""
