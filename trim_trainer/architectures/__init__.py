"""What each decoder is made of, as rows: where its layers are, config fields, constraints, weight edits, runtimes."""
