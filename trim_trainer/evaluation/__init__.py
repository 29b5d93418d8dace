"""Checkpoints and layers, measured side by side, each model in a process of its own."""
