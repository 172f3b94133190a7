"""Generators: labelled synthetic samples from prompts."""
