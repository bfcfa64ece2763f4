"""Requests for features, checked against a backbone before anything is compiled."""

import dataclasses
from collections.abc import Sequence

from dinov2_jax.config.files import ConfigError, nearest
from dinov2_jax.data.fit import POLICIES, Fit
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone

KINDS = ("cls", "registers", "mean_patch", "patches")


@dataclasses.dataclass(frozen=True)
class Request:
    """Which features of which blocks, and how pictures come to whole patches.

    Attributes:
      columns: (name, one of KINDS, block 0..depth - 1) of every feature, blocks ascending.
      norm: features after the backbone's final norm (whatever the block), or before it.
      fit: what becomes of a picture's size.
      channels: channels of the pictures.
    """

    columns: tuple[tuple[str, str, int], ...]
    norm: bool
    fit: Fit
    channels: int = 3

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the columns, in the order of KINDS."""
        wanted = {kind for _, kind, _ in self.columns}
        return tuple(kind for kind in KINDS if kind in wanted)

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks of the columns, ascending."""
        return tuple(sorted({layer for *_, layer in self.columns}))

    @property
    def has_mask(self) -> bool:
        """Whether some pictures have fewer patches than others, and patches are wanted."""
        return "patches" in self.kinds and not self.fit.one_size

    def shape(self, kind: str, model: VisionTransformer) -> tuple[int, ...]:
        """Shape of a feature of one picture."""
        rows, cols = self.fit.grid
        tokens = {"registers": (model.registers,), "patches": (rows * cols,)}
        return (*tokens.get(kind, ()), model.dim)


def make_request(
    backbone: Backbone,
    features: Sequence[str],
    layers: Sequence[int],
    norm: bool,
    policy: str,
    size: Sequence[int],
) -> Request:
    """Checks the arguments, those of `extract`, and fills in what the weights say.

    Raises:
      ConfigError: an argument that this backbone cannot give.
    """
    model = backbone.model
    kinds = (features,) if isinstance(features, str) else tuple(features)
    require_known("features", kinds, KINDS)
    require_known("policy", (policy,), POLICIES)
    if "registers" in kinds and not model.registers:
        raise ConfigError(f"{backbone.source} has no register tokens; leave out 'registers'")
    channels = in_channels(backbone.params, model.patch_size)
    fit = _fit(backbone.preprocessing, policy, tuple(size), model.patch_size)
    blocks = _blocks(tuple(layers), model.depth)
    pairs = [(kind, block) for block in blocks for kind in KINDS if kind in kinds]
    form = "{}_block_{}" if len(blocks) > 1 else "{}"
    columns = tuple((form.format(kind, block), kind, block) for kind, block in pairs)
    return Request(columns, bool(norm), fit, channels)


def central_square(
    model: VisionTransformer,
    preprocessing: Preprocessing,
    kinds: Sequence[str] = ("cls",),
    channels: int = 3,
) -> Request:
    """Normed features of the last block, of the central square that `preprocessing` describes."""
    columns = tuple((kind, kind, model.depth - 1) for kind in KINDS if kind in kinds)
    fit = _fit(preprocessing, "center_crop", (), model.patch_size)
    return Request(columns, True, fit, channels)


def require_known(field: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values or ("",):
        if value not in known:
            raise ConfigError(
                f"{field} has {value!r}; did you mean {nearest(str(value), known)!r}? "
                f"(of {', '.join(known)})"
            )


def _blocks(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong or not layers:
        raise ConfigError(
            f"layers={layers} are not all blocks of a backbone of depth {depth}; valid: 0 to "
            f"{depth - 1}, or -1 (the last) to -{depth}"
        )
    return tuple(sorted({layer % depth for layer in layers}))


def _fit(weights: Preprocessing, policy: str, size: tuple[int, ...], patch_size: int) -> Fit:
    most, sides = (2, "one or two sides") if policy == "resize" else (1, "one side")
    size = size or (weights.image_px,) * most
    if len(size) > most:
        raise ConfigError(f"size={size}: policy {policy!r} takes {sides} in px")
    near = tuple(max(1, round(side / patch_size)) * patch_size for side in size)
    if near != size:
        raise ConfigError(
            f"size={size} is not whole patches of {patch_size} px; nearest valid: size={near}"
        )
    resize_px = round(weights.resize_px * size[0] / weights.image_px)
    fill = tuple(round(255 * value) for value in weights.mean)
    return Fit(policy, size, resize_px, patch_size, fill)
