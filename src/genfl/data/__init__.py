"""Data sets, their split over clients, and synthetic data on disk."""
