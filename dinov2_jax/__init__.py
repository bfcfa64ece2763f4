"""DINOv2 in JAX: self-supervised training of image features, end to end.

Importing this package loads nothing else: data workers and command-line errors must not wait for
JAX. What the public names need is imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov2_jax.features.extract import extract
    from dinov2_jax.weights.hub import list_models
    from dinov2_jax.weights.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "extract", "list_models", "load"]

_HOMES = {
    "extract": "dinov2_jax.features.extract",
    "list_models": "dinov2_jax.weights.hub",
    "load": "dinov2_jax.weights.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dinov2_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
