"""Attention, forward and backward: our function, and the backends it chooses from."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.bench.draws import draw_images
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.ops.attention import attention, choose, platform_in_use


def _of_jax(implementation: Any) -> Callable[..., Array]:
    def call(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    return call


def _of_ours(backend: str, shape: tuple[int, ...], dtype: Any) -> Callable[..., Array]:
    """Our function with a given backend, which must not be replaced by another."""
    if choose(backend, platform_in_use(), shape, dtype) != backend:
        raise ValueError(f"the backend {backend} cannot run {shape} {dtype} here; leave it out")
    return functools.partial(attention, backend=backend)


def side(settings: Settings) -> Side:
    """settings: "batch", "tokens", "heads", "head_dim", "dtype", "seed", "backend", "backward".

    Backend "ours" is `ops.attention.attention`, "ours-NAME" the same with that backend; others are
    handed to jax.nn as they are.
    """
    configure(settings)
    backend = settings["backend"]
    shape = (settings["batch"], settings["tokens"], settings["heads"], settings["head_dim"])
    dtype = DTYPES[settings["dtype"]]
    if backend.startswith("ours-"):
        function = _of_ours(backend.removeprefix("ours-"), shape, jnp.dtype(dtype))
    else:
        function = attention if backend == "ours" else _of_jax(backend)
    drawn = draw_images(settings["seed"], 4, *shape)
    q, k, v, cotangent = (jnp.asarray(x, dtype) for x in drawn)

    @jax.jit
    def work(q, k, v, cotangent):
        if not settings["backward"]:
            return (function(q, k, v),)
        out, pull_back = jax.vjp(function, q, k, v)
        return out, *pull_back(cotangent)

    def call():
        return work(q, k, v, cotangent)

    def check() -> Arrays:
        names = ("out", "dq", "dk", "dv")
        return {n: np.asarray(x, np.float32) for n, x in zip(names, call(), strict=False)}

    return side_of(check, repeat(call))
