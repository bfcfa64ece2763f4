"""DINOv2 in JAX: self-supervised training of image features, end to end.

Importing this package loads nothing else: data workers and command-line errors must not wait for
JAX.
"""

__version__ = "0.1.0"
