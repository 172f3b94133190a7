"""Prompts: many diverse texts from the names of labels."""
