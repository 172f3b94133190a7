"""Differential privacy: accounting, and noise at clients or on sums."""
