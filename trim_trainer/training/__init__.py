"""Training while layers drop: config, checks, schedule, the algorithm, and TrimTrainer, where it meets the loop of the Trainer."""
