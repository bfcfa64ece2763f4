"""Configurations of the evaluations; they read the model's shape from the checkpoint."""
