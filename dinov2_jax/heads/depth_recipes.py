"""How the reference trains and judges depth heads, by set."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.data.depth_crops import DepthCrops
from dinov2_jax.heads.dense import Loss
from dinov2_jax.heads.dense_forward import Form, Trained, head_output
from dinov2_jax.heads.depth_losses import gradient_loss, grouped_sig_loss
from dinov2_jax.models.depth import BINS, DPT, LinearDepth
from dinov2_jax.models.maps import Level, resize

WARM_STEPS = 100  # in which the loss ignores the variance
GROUP = 2  # pictures that share a loss; those of one GPU in the reference


@dataclasses.dataclass(frozen=True)
class DepthRecipe:
    """What differs between sets.

    Attributes:
      low, high: metres; of the bins, of the clamp and of the pixels that count.
      frame: of `depth_crops.fixed_box`; kept at training, and for "kitti" at the test as well.
      crop: h, w of training crops in px.
      brightness: factors of the colours.
      judged: where pictures are judged, one of `metrics.depth.CROPS`.
      test_size: h, w to which test pictures are resized; (): as they are.
      test_most_m: predictions beyond are judged as this; 0: none is.
    """

    low: float
    high: float
    frame: str
    crop: tuple[int, int]
    brightness: tuple[float, float]
    judged: str
    test_size: tuple[int, ...] = ()
    test_most_m: float = 0.0
    iterations: int = 38_400
    batch_size: int = 16
    lr: float = 1e-4
    warmup_iterations: int = 12_800

    @property
    def crops(self) -> DepthCrops:
        return DepthCrops(*self.crop, frame=self.frame, brightness=self.brightness)

    @property
    def test_frame(self) -> str:
        """What is kept of a test picture: NYU's white frame is judged away, not cut off."""
        return self.frame if self.frame == "kitti" else ""


_NYU = DepthRecipe(0.001, 10.0, "nyu", (416, 544), (0.75, 1.25), "nyu_eigen")
RECIPES = {
    "nyu": _NYU,
    "kitti": DepthRecipe(0.001, 80.0, "kitti", (352, 704), (0.9, 1.1), "garg"),
    # An NYU head, unchanged. The set's own tools read depths beyond 8 m as 8 m, so predictions are
    # as well.
    "sunrgbd": dataclasses.replace(
        _NYU, frame="", judged="none", test_size=(480, 640), test_most_m=8.0
    ),
    "folder": dataclasses.replace(_NYU, frame="", judged="none"),
}


def first_params(
    form: Form, width: int, blocks: int, seed: int, channels: int = 256
) -> dict[str, Any]:
    """Random parameters of a depth head for a backbone of `width`.

    Args:
      blocks: 1 or 4 of "depth_linear"; 4 of "depth_dpt".
      channels: of the running map of "depth_dpt".
    """
    if form.kind == "depth_dpt":
        module = DPT(form.low, channels)
    else:
        module = LinearDepth(form.low, form.high, BINS)
    levels = [Level(jnp.zeros((1, 2, 2, width)), jnp.zeros((1, width)))] * blocks
    params = jax.jit(module.init)(jax.random.key(seed), levels)["params"]
    return jax.tree.map(np.asarray, params)


def depth_loss(form: Form, gradient_weight: float = 0.0) -> Loss:
    """The reference's training loss of a depth head, for `train_dense`."""

    def loss(
        trained: Any, levels: Sequence[Level], targets: Array, iteration: Array
    ) -> tuple[Array, Any]:
        output = head_output(form, Trained(trained["params"]), levels)
        depth = resize(output[..., None], targets.shape[1:3])[..., 0]
        # The loss is of the reference's two pictures a GPU, on any number of devices.
        group = GROUP if len(depth) % GROUP == 0 else 1
        # Beyond the range there is no truth: bins cannot give it.
        true = jnp.where(targets <= form.high, targets, 0)
        found = grouped_sig_loss(depth, true, group, iteration < WARM_STEPS)
        if gradient_weight:
            found += gradient_loss(depth, true, weight=gradient_weight)
        return found, trained

    return loss
