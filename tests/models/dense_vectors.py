"""Reading dense_heads.npz: sizes, ranges and the backbone follow from its names and shapes."""

import re
from functools import cache

import jax
import numpy as np

from dinov2_jax.models.maps import Level, feature_levels
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.convert import from_reference

LOW, DPT_HIGH, FLIP_HIGH = 0.001, 10, {"depth_linear1": 80, "depth_linear4": 80, "depth_dpt": 10}


@cache
def read(folder):
    return dict(np.load(folder / "dense_heads.npz"))


def under(vectors, prefix):
    return {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}


def places(vectors, pattern):
    """What the group of a pattern matches in whole names, each once, in the file's order."""
    found = (re.fullmatch(pattern, name) for name in vectors)
    return list(dict.fromkeys(match[1] for match in found if match))


def sizes(vectors):
    return places(vectors, r"(\d+x\d+)/padded")


def channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def close(found, expected, bound):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def levels(vectors, size, count, kind="raw"):
    """Features of the last `count` blocks in the file."""
    case = under(vectors, f"{size}/")
    blocks = sorted(int(i) for i in places(case, rf"{kind}(\d+)"))
    return [Level(channels_last(case[f"{kind}{i}"]), case[f"raw_cls{i}"]) for i in blocks[-count:]]


def backbone(vectors):
    """The module and its parameters; no tensor tells the attention heads, but features do."""
    flat = under(vectors, "backbone/params/")
    dim, patch = flat["patch_embed.proj.weight"].shape[::3]
    model = VisionTransformer(
        dim=dim,
        depth=sum(name.endswith("norm1.weight") for name in flat),
        heads=1,
        patch_size=patch,
        image_size=patch * round((flat["pos_embed"].shape[1] - 1) ** 0.5),
        layerscale=1.0,
    )
    params, size = from_reference(flat), sizes(vectors)[0]
    image, want = channels_last(vectors[f"{size}/image"]), vectors[f"{size}/raw_cls0"]

    def error(heads):
        tried = model.clone(heads=heads)
        (level,) = jax.jit(lambda x: feature_levels(tried, params, x, (0,), False))(image)
        return np.abs(level.cls - want).max()

    return model.clone(heads=min((n for n in range(1, 9) if dim % n == 0), key=error)), params
