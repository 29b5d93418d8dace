"""Layers are taken out of a model, its config, its adapters, its optimizer and its wrappers; nothing else changes a model."""
