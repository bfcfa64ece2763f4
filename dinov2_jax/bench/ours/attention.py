"""Attention, forward and backward: our function, and the backends it chooses from."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.bench.draws import draw_images
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.ops.attention import attention, choose, platform_in_use

RESULTS = ("out", "dq", "dk", "dv")


def _of_jax(implementation: Any) -> Callable[..., Array]:
    def call(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    return call


def _of_ours(backend: str, shape: tuple[int, ...], dtype: Any) -> Callable[..., Array]:
    """Our function with a given backend, which must not be replaced by another."""
    if choose(backend, platform_in_use(), shape, dtype) != backend:
        raise ValueError(f"the backend {backend} cannot run {shape} {dtype} here; leave it out")
    return functools.partial(attention, backend=backend)


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, cotangent: np.ndarray
) -> dict[str, np.ndarray]:
    """Output and gradients in float64 on the host, straight from the formula.

    Args:
      q, k, v, cotangent: [B, N, H, head_dim].

    Returns:
      {"out", "dq", "dk", "dv"}, each of the same shape.
    """

    def one_image(image: int) -> list[np.ndarray]:
        """[H, N, head_dim] each; a head at a time, because N x N products in float64 are large."""
        operands = (x[image].astype(np.float64).swapaxes(0, 1) for x in (q, k, v, cotangent))
        return [np.stack(x) for x in zip(*map(_exact_head, *operands), strict=True)]

    with ThreadPoolExecutor() as pool:  # products of NumPy release the interpreter
        images = list(pool.map(one_image, range(q.shape[0])))
    arrays = (np.stack(x).swapaxes(1, 2) for x in zip(*images, strict=True))
    return dict(zip(RESULTS, arrays, strict=True))


def _exact_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, cotangent: np.ndarray) -> Any:
    """[N, head_dim] each -> out, dq, dk, dv."""
    scale = q.shape[-1] ** -0.5
    logits = q @ k.T * scale
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    change = cotangent @ v.T
    change = weights * (change - (weights * change).sum(axis=-1, keepdims=True)) * scale
    return weights @ v, change @ k, change.T @ q, weights.T @ cotangent


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
        return {n: np.asarray(x, np.float32) for n, x in zip(RESULTS, call(), strict=False)}

    return side_of(check, repeat(call))
