"""Random weights and inputs for both sides, from a seed, with numpy alone.

Names and layouts are the reference's (weights/convert.py). Weights that usually start at 0 or 1 are
random too, so that the comparison notices any weight that is not used. Sizes and names are repeated
here because the model's own tables would load JAX into the peers' processes; a test compares them.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dinov2_jax.bench.harness import Settings
from dinov2_jax.data.masking import sample_masks

Flat = dict[str, np.ndarray]


class ViTShape(NamedTuple):
    """Width, blocks and heads of a backbone; sides in px; "mlp" or "swiglu" (packed)."""

    dim: int
    depth: int
    heads: int
    patch_size: int
    image_size: int
    ffn: str = "mlp"


# The released models (paper table 17), and a tiny one for tests.
VARIANTS = {
    "vit_tiny": (192, 12, 3, "mlp"),
    "vit_small": (384, 12, 6, "mlp"),
    "vit_base": (768, 12, 12, "mlp"),
    "vit_large": (1024, 24, 16, "mlp"),
    "vit_giant2": (1536, 40, 24, "swiglu"),
}


def hidden_dim(shape: ViTShape) -> int:
    """Width of the feed-forward network; SwiGLU: two thirds, rounded up to a multiple of 8."""
    return (8 * shape.dim // 3 + 7) // 8 * 8 if shape.ffn == "swiglu" else 4 * shape.dim


def _linear(name: str, out_dim: int, in_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def backbone_shapes(shape: ViTShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, as in the released files."""
    dim, hidden, patches = shape.dim, hidden_dim(shape), (shape.image_size // shape.patch_size) ** 2
    vector = (dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + patches, dim),
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, shape.patch_size, shape.patch_size),
        "patch_embed.proj.bias": vector,
        "norm.weight": vector,
        "norm.bias": vector,
    }
    if shape.ffn == "swiglu":
        ffn = _linear("mlp.w12", 2 * hidden, dim) | _linear("mlp.w3", dim, hidden)
    else:
        ffn = _linear("mlp.fc1", hidden, dim) | _linear("mlp.fc2", dim, hidden)
    block = _linear("attn.qkv", 3 * dim, dim) | _linear("attn.proj", dim, dim) | ffn
    for norm, scale in (("norm1", "ls1"), ("norm2", "ls2")):
        block |= {f"{norm}.weight": vector, f"{norm}.bias": vector, f"{scale}.gamma": vector}
    for i in range(shape.depth):
        shapes |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    return shapes


def head_shapes(
    dim: int, hidden: int, bottleneck: int, prototypes: int, layers: int = 3
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a projection head; its linear layers are mlp.0, mlp.2, ..."""
    widths = [dim, *[hidden] * (layers - 1), bottleneck]
    shapes = {
        "last_layer.weight_g": (prototypes, 1),
        "last_layer.weight_v": (prototypes, bottleneck),
    }
    for i, (in_dim, out_dim) in enumerate(itertools.pairwise(widths)):
        shapes |= _linear(f"mlp.{2 * i}", out_dim, in_dim)
    return shapes


def dpt_shapes(dim: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a DPT head for a backbone of width `dim`, as the released files have."""
    widths = dim // 8, dim // 4, dim // 2, dim
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out_dim: int, in_dim: int, side: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out_dim, in_dim, side, side)
        if bias:
            shapes[f"{name}.bias"] = (out_dim,)

    for i, width in enumerate(widths):
        shapes |= _linear(f"reassemble_blocks.readout_projects.{i}.0", dim, 2 * dim)
        conv(f"reassemble_blocks.projects.{i}.conv", width, dim, 1)
        conv(f"convs.{i}.conv", channels, width, 3, bias=False)
        conv(f"fusion_blocks.{i}.project.conv", channels, channels, 1)
        for unit, n in itertools.product((1, 2) if i else (2,), (1, 2)):
            name = f"fusion_blocks.{i}.res_conv_unit{unit}.conv{n}.conv"
            conv(name, channels, channels, 3, bias=False)
    for i, side in ((0, 4), (1, 2), (3, 3)):
        conv(f"reassemble_blocks.resize_layers.{i}", widths[i], widths[i], side)
    conv("project.conv", channels, channels, 3)
    sides = ("0", channels // 2, channels, 3), ("2", 32, channels // 2, 3), ("4", 1, 32, 1)
    for name, *sizes in sides:
        conv(f"conv_depth.head.{name}", *sizes)
    return shapes


def draw_levels(
    seed: int, batch: int, rows: int, cols: int, dim: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features of four blocks: patches [B, h, w, D] and cls [B, D]."""
    drawn = draw_images(seed, 4, batch, 1 + rows * cols, dim)
    return [(x[:, 1:].reshape(batch, rows, cols, dim), x[:, 0]) for x in drawn]


def draw_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Flat:
    """fp32 weights: norms and gains near 1, LayerScale near 0.1, biases with deviation 0.02.

    Linear weights are scaled by their width, so that activations keep their size at any depth.
    """
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape, dtype=np.float32)
        if "gamma" in name:
            flat[name] = 0.1 + 0.02 * value
        elif ("norm" in name and name.endswith("weight")) or name.endswith("weight_g"):
            flat[name] = 1 + 0.1 * value
        elif name.endswith("weight") or name.endswith("weight_v"):
            flat[name] = value * np.float32(np.prod(shape[1:])) ** -0.5
        else:
            flat[name] = 0.02 * value
    return flat


def draw_images(seed: int, *shape: int) -> np.ndarray:
    """Normal fp32 noise; not zeros, because the speed of some kernels depends on values."""
    return np.random.default_rng(seed + 1000).standard_normal(shape, dtype=np.float32)


def draw_networks(config: Settings, seed: int) -> dict[str, Flat]:
    """Weights of student or teacher: {"backbone", "dino_head"[, "ibot_head"]}."""
    shape = shape_of(config)
    heads = {"dino_head": config["dino"]}
    if config["ibot"]["separate_head"]:
        heads["ibot_head"] = config["ibot"]
    shapes = {"backbone": backbone_shapes(shape)} | {
        name: head_shapes(
            shape.dim,
            head["head_hidden_dim"],
            head["head_bottleneck_dim"],
            head["head_prototypes"],
            head["head_layers"],
        )
        for name, head in heads.items()
    }
    return {name: draw_weights(s, seed + i) for i, (name, s) in enumerate(shapes.items())}


def shape_of(config: Settings) -> ViTShape:
    """The backbone that a configuration describes."""
    model = config["model"]
    dim, depth, heads, _ = VARIANTS[model["variant"]]
    return ViTShape(
        model["dim"] or dim,
        model["depth"] or depth,
        model["heads"] or heads,
        model["patch_size"],
        config["crops"]["global_size"],
        model["ffn"],
    )


def draw_batch(config: Settings, seed: int) -> Flat:
    """Normalised crops of noise and masks, as ssl/objective.py takes them; one group."""
    crops, ibot, batch = config["crops"], config["ibot"], config["batch_size"]
    size, local, views = crops["global_size"], crops["local_size"], crops["local_number"]
    grid = (size // config["model"]["patch_size"],) * 2
    rng = np.random.default_rng(seed)
    masks, indices, weights = sample_masks(
        rng, batch, grid, ibot["mask_probability"], tuple(ibot["mask_ratio"])
    )
    return {
        "global_crops": draw_images(seed, batch, 2, size, size, 3),
        "local_crops": draw_images(seed + 1, batch, views, local, local, 3),
        "masks": masks,
        "mask_indices": indices[None],
        "mask_weights": weights[None],
    }


def draw_noise(config: Settings, seed: int) -> Flat:
    """A batch like the loader's, with uint8 noise as crops; one group."""
    rng = np.random.default_rng(seed)
    batch = draw_batch(config, seed)
    for name in ("global_crops", "local_crops"):
        batch[name] = rng.integers(0, 256, batch[name].shape, dtype=np.uint8)
    return batch


def draw_rows(seed: int, rows: int, prototypes: int) -> Flat:
    """Logits of masked patches (between -1 and 1), weights, and a centre."""
    rng = np.random.default_rng(seed)

    def logits() -> np.ndarray:
        return np.tanh(rng.standard_normal((rows, prototypes), dtype=np.float32))

    return {
        "teacher": logits(),
        "student": logits(),
        "weights": rng.uniform(0.005, 0.05, rows).astype(np.float32),
        "center": 0.1 * rng.standard_normal(prototypes, dtype=np.float32),
    }


class ProbeDraw(NamedTuple):
    """Features, their labels, and initial weights of the classifiers."""

    columns: list[np.ndarray]  # [n, D]: cls of four blocks, mean patch
    labels: np.ndarray  # [n]
    weights: list[np.ndarray]  # [d, R, K] for inputs of 1, 2, 4 and 5 columns
    order: np.ndarray  # rows [check_steps, B] of the steps that are compared


def draw_probe(
    seed: int, rows: int, dim: int, classes: int, rates: int, shape: tuple[int, int]
) -> ProbeDraw:
    """Features like those after a LayerNorm, weights from N(0, 0.01^2)."""
    rng = np.random.default_rng(seed)
    columns = [rng.standard_normal((rows, dim), np.float32) for _ in range(5)]
    labels = rng.integers(0, classes, rows)
    weights = [
        0.01 * rng.standard_normal((count * dim, rates, classes), np.float32)
        for count in (1, 2, 4, 5)
    ]
    return ProbeDraw(columns, labels, weights, rng.integers(0, rows, shape))


def draw_unit_vectors(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """A bank ["bank", "dim"] and queries ["queries", "dim"] of unit vectors, fp32."""
    rng = np.random.default_rng(settings["seed"])
    sizes = (settings[name] for name in ("bank", "queries"))
    drawn = [rng.normal(size=(size, settings["dim"])).astype(np.float32) for size in sizes]
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in drawn)
    return bank, queries


def draw_classes(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Features ["rows", "dim"] fp32 and labels of "classes" overlapping clusters.

    Variances fall as 1 / rank in a random basis, like those of a backbone's features.
    """
    rng = np.random.default_rng(settings["seed"])
    rows, dim, classes = (settings[name] for name in ("rows", "dim", "classes"))
    spread = np.arange(1, dim + 1) ** -0.5
    spread *= np.sqrt(dim / np.sum(spread**2))
    labels = rng.integers(0, classes, rows)
    centres = settings["apart"] * rng.normal(size=(classes, dim))
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    features = (centres[labels] + rng.normal(size=(rows, dim))) * spread @ basis
    return features.astype(np.float32), labels


def logistic_objective(
    features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, C: float
) -> float:
    """1/2 |W|^2 + C sum of cross-entropies in fp64, for weight [K, D] and bias [K]."""
    z = features.astype(np.float64) @ weight.astype(np.float64).T + bias
    z -= z.max(axis=1, keepdims=True)
    loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
    return float(0.5 * (weight.astype(np.float64) ** 2).sum() + C * loss.sum())
