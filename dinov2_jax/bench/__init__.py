"""Measurements against other implementations: python -m dinov2_jax.bench.<name> --help.

features, step, losses, attention, pipeline, end_to_end, knn, logreg and linear each measure one
part; summary makes one table of many records; slice measures a choice of all on a GPU in eight
minutes. The modules here read the command line, draw inputs and compare results, with numpy alone.
Measured code is in `ours` (JAX) and `peers` (PyTorch, faiss, scikit-learn); only worker processes
import it, and each of them loads one of the two.
"""
