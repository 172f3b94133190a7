"""Measurements on a federation."""
