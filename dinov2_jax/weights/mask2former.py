"""The released Mask2Former: backbone, adapter and decoder in one file, in and out.

Layout: `backbone.*` and `decode_head.*`, bare or below "state_dict" (dinov2_vitg14_ade20k_m2f.pth).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dinov2_jax.models.adapter import NORMS, ViTAdapter
from dinov2_jax.models.block import Block
from dinov2_jax.models.mask2former import Mask2Former
from dinov2_jax.models.segmentation import Statistics
from dinov2_jax.weights.convert import from_reference, to_reference
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.layouts import Flat, rename

_VIT = ("pos_embed", "cls_token", "patch_embed.", "blocks.")
# Our path -> the released key.
_TO_KEY = (
    (r"(kernel|scale)$", "weight"),
    (r"ffn/dwconv/", "ffn/dwconv/dwconv/"),
    (r"(encoder|transformer_decoder)_(layers|post_norm)", r"\1/\2"),
    (r"(attentions_\d)_attn", r"\1/attn"),
    (r"(layers_\d+)/fc1/", r"\1/ffns_0/layers_0_0/"),
    (r"(layers_\d+)/fc2/", r"\1/ffns_0/layers_1/"),
    (r"(level_encoding|query_embed|query_feat)$", r"\1/weight"),
    (r"_(\d+)_(\d+)/", r"_\1/\2/"),
    (r"_(\d+)(?=/|$)", r"/\1"),
    (r"/", "."),
)
_STATISTICS = "running_mean", "running_var", "num_batches_tracked"


class Mask2FormerWeights(NamedTuple):
    """Modules and their arrays.

    Attributes:
      adapter, head: the modules.
      vit, adapter_params, head_params: parameters of the backbone and of both modules.
      statistics: of the adapter's batch norms, by name.
    """

    adapter: ViTAdapter
    head: Mask2Former
    vit: Mapping[str, Any]
    adapter_params: Mapping[str, Any]
    head_params: Mapping[str, Any]
    statistics: Mapping[str, Statistics]


def from_released(tensors: Flat, vit_heads: int = 0) -> Mask2FormerWeights:
    """Reads the tensors of a whole segmenter.

    Args:
      tensors: by released name, `backbone.*` and `decode_head.*`.
      vit_heads: attention heads of the ViT; 0: one for each 64 of its width.

    Raises:
      WeightsError: a tensor is missing, unknown, or of another shape than the others want.
    """
    backbone = _under(tensors, "backbone.")
    own = {k: v for k, v in backbone.items() if not k.startswith(_VIT)}
    vit = from_reference({_to_ours(k): v for k, v in _fused(backbone).items()})
    adapter, head = _modules(backbone, _under(tensors, "decode_head."), vit_heads)
    statistics = _statistics(own)
    own = {k: v for k, v in own.items() if not k.endswith(_STATISTICS)}
    shapes = _shapes(adapter, head, vit, statistics)
    params = _read(shapes[0], own, "backbone.", ("level_embed",))
    decoder = _read(shapes[1], _under(tensors, "decode_head."), "decode_head.", ())
    return Mask2FormerWeights(adapter, head, vit, params, decoder, statistics)


def to_released(weights: Mask2FormerWeights) -> dict[str, np.ndarray]:
    """Writes all tensors by their released names."""
    vit = to_reference(weights.vit, weights.adapter.patch_size)
    out = {f"backbone.{_to_theirs(k)}": v for k, v in _split(vit).items()}
    out |= _written(weights.adapter_params, "backbone.", ("level_embed",))
    for name, statistics in weights.statistics.items():
        kinds = zip(_STATISTICS, statistics, (np.float32, np.float32, np.int64), strict=True)
        key = rename(name, _TO_KEY)
        out |= {f"backbone.{key}.{kind}": np.asarray(x, dtype) for kind, x, dtype in kinds}
    return out | _written(weights.head_params, "decode_head.", ())


def _under(tensors: Flat, prefix: str) -> dict[str, np.ndarray]:
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not found:
        raise WeightsError(
            f"no tensor begins with {prefix!r}, so this is no whole Mask2Former; give a file like "
            "dinov2_vitg14_ade20k_m2f.pth"
        )
    return found


# --------------------------------------------------------------------------------------- the ViT
def _fused(backbone: Flat) -> dict[str, np.ndarray]:
    """The tensors of the ViT, with w1 and w2 as one."""
    vit = {k: np.asarray(v) for k, v in backbone.items() if k.startswith(_VIT)}
    for key in [k for k in vit if ".mlp.w1." in k]:
        second = key.replace(".w1.", ".w2.")
        pair = vit.pop(key), vit.pop(second, np.zeros(0, np.float32))
        if pair[0].shape != pair[1].shape:
            raise WeightsError(f"backbone.{second} is missing or does not fit w1")
        vit[key.replace(".w1.", ".w12.")] = np.concatenate(pair)
    return vit


def _split(vit: Flat) -> dict[str, np.ndarray]:
    out = dict(vit)
    for key in [k for k in vit if ".mlp.w12." in k]:
        parts = np.split(out.pop(key), 2)
        names = key.replace(".w12.", ".w1."), key.replace(".w12.", ".w2.")
        out |= dict(zip(names, parts, strict=True))
    return out


def _to_ours(key: str) -> str:
    return key.replace(".gamma1", ".ls1.gamma").replace(".gamma2", ".ls2.gamma")


def _to_theirs(key: str) -> str:
    return key.replace(".ls1.gamma", ".gamma1").replace(".ls2.gamma", ".gamma2")


# ------------------------------------------------------------------------------------ the modules
def _modules(backbone: Flat, decoder: Flat, vit_heads: int) -> tuple[ViTAdapter, Mask2Former]:
    """Modules whose sizes the shapes of the tensors tell."""
    try:
        dim = backbone["cls_token"].shape[-1]
        points = 4  # of every released model
        attention = "interactions.0.injector.attn."
        total = backbone[f"{attention}attention_weights.bias"].shape[0]
        ratio = backbone[f"{attention}value_proj.bias"].shape[0] / dim
        block = Block(vit_heads or dim // 64, ffn=_ffn(backbone))
        adapter = ViTAdapter(
            block=block,
            patch_size=backbone["patch_embed.proj.weight"].shape[-1],
            width=backbone["spm.stem.0.weight"].shape[0],
            heads=total // (3 * points),
            points=points,
            ratio=ratio,
            ffn_ratio=backbone["interactions.0.extractor.ffn.fc1.bias"].shape[0] / dim,
        )
        return adapter, _decoder(decoder, points)
    except KeyError as error:
        raise WeightsError(f"the tensor {error} is missing; download the file again") from error


def _ffn(backbone: Flat) -> str:
    return "swiglu" if "blocks.0.mlp.w3.weight" in backbone else "mlp"


def _decoder(decoder: Flat, points: int) -> Mask2Former:
    width = decoder["query_feat.weight"].shape[1]
    pixel, layer = "pixel_decoder.encoder.layers.", "transformer_decoder.layers."
    total = decoder[f"{pixel}0.attentions.0.attention_weights.bias"].shape[0]
    pixel_heads = total // (3 * points)
    return Mask2Former(
        classes=decoder["cls_embed.bias"].shape[0] - 1,
        width=width,
        queries=decoder["query_feat.weight"].shape[0],
        layers=_count(decoder, layer),
        heads=pixel_heads,  # the tensors do not tell; both are 32 in the released file
        hidden=decoder[f"{layer}0.ffns.0.layers.0.0.bias"].shape[0],
        pixel_layers=_count(decoder, pixel),
        pixel_heads=pixel_heads,
        pixel_hidden=decoder[f"{pixel}0.ffns.0.layers.0.0.bias"].shape[0],
        groups=min(32, width // 4),
    )


def _count(tensors: Flat, prefix: str) -> int:
    return 1 + max(
        int(k.removeprefix(prefix).split(".")[0]) for k in tensors if k.startswith(prefix)
    )


def _statistics(own: Flat) -> dict[str, Statistics]:
    try:
        return {
            name: Statistics(
                *(jnp.asarray(own[f"{rename(name, _TO_KEY)}.{x}"]) for x in _STATISTICS)
            )
            for name in NORMS
        }
    except KeyError as error:
        raise WeightsError(f"the tensor backbone.{error.args[0]} is missing") from error


def _shapes(
    adapter: ViTAdapter, head: Mask2Former, vit: Any, statistics: Mapping[str, Statistics]
) -> tuple[Any, Any]:
    """The parameters that the modules want, without values."""
    side = int(np.lcm(32, adapter.patch_size))
    images = jnp.zeros((1, side, side, 3))
    keys = jax.random.key(0)
    wanted = jax.eval_shape(adapter.init, keys, images, vit, statistics)["params"]
    maps = jax.eval_shape(
        lambda p: adapter.apply({"params": p}, images, vit, statistics)[0], wanted
    )
    return wanted, jax.eval_shape(head.init, keys, maps)["params"]


# ------------------------------------------------------------------------------------ the arrays
def _key(path: str, bare: tuple[str, ...]) -> str:
    key = rename(path, _TO_KEY)
    embedding = path == "level_embed" and path not in bare
    return f"{key}.weight" if embedding else key


def _read(wanted: Any, tensors: Flat, prefix: str, bare: tuple[str, ...]) -> dict[str, Any]:
    flat, left = {}, dict(tensors)
    for path, like in flatten_dict(wanted, sep="/").items():
        key = _key(path, bare)
        if key not in left:
            raise WeightsError(f"the tensor {prefix}{key} is missing; download the file again")
        value = _from_torch(path, np.asarray(left.pop(key)))
        if value.shape != like.shape:
            raise WeightsError(
                f"{prefix}{key} does not fit the other tensors: {value.shape} in place of "
                f"{like.shape} (in our layout)"
            )
        flat[path] = value
    if left:
        raise WeightsError(
            f"{len(left)} tensors are unknown, such as {prefix}{min(left)}; give a file like "
            "dinov2_vitg14_ade20k_m2f.pth"
        )
    return unflatten_dict(flat, sep="/")


def _written(params: Any, prefix: str, bare: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {
        prefix + _key(path, bare): _to_torch(path, np.asarray(value))
        for path, value in flatten_dict(params, sep="/").items()
    }


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel") or path == "up/kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def _to_torch(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel") or path == "up/kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
