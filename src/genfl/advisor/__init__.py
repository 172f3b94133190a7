"""Advice before a run: whether its generator will help, from a small run of the same config."""
