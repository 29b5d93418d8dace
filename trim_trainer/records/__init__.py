"""What was done, as plain data: history, measurements, the recipe file, statistics, plots. Nothing here loads torch."""
