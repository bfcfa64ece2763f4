"""DINOv2 in JAX: self-supervised training of image features, end to end.

    load         weights by name or path
    load_head    a classifier, segmentation or depth head by name or path
    list_models  the released backbones
    extract      features of pictures
    evaluate     k-NN, linear probes and other protocols
    pretrain     training

Importing this package loads nothing else: data workers and command-line errors must not wait for
JAX. `dinov2_jax/api.py`, which has these functions, is imported when one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov2_jax.api import evaluate, extract, list_models, load, load_head, pretrain

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "extract", "list_models", "load", "load_head", "pretrain"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dinov2_jax' has no attribute {name!r}")
    from dinov2_jax import api

    return getattr(api, name)
