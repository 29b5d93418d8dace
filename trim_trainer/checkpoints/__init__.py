"""What is on disk is what is in memory: loading, saving, verifying, dropping without training."""
