"""Weights in and out: key tables between parameter layouts."""
