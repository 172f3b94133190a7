"""Secure sums and what protects clients."""
