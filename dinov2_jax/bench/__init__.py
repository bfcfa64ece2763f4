"""Measurements against other implementations: python -m dinov2_jax.bench.<name> --help.

features, step, losses, attention, pipeline, end_to_end; summary makes one table of many records.
The modules here read the command line, draw inputs and compare results, with numpy alone. Code that
is measured lies in `ours` (JAX) and `peers` (PyTorch) and is imported by worker processes only,
each of which loads one of the two.
"""
