"""Trimming next to its controls: methods as rows, cells, table, picture."""
