"""Evaluation of frozen features: one file a protocol."""
