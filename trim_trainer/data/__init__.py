"""Rows of published data sets become examples: columns, tokens, splits that share nothing, metrics."""
