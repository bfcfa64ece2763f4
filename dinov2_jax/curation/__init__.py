"""Curation: which pictures of a pool to train on, and how often."""
