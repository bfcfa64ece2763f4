"""A segmentation or depth head: what it reads, what it predicts, and its file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dinov2_jax.data.decode import MAX_PIXELS
from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.dense_forward import KINDS, SPREAD, Form, Trained, module_of, read_blocks
from dinov2_jax.heads.dense_predict import Options, predict
from dinov2_jax.models.maps import Level
from dinov2_jax.models.segmentation import Statistics
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.dense_files import StoredHead, dense_of, write_dense
from dinov2_jax.weights.files import WeightsError, blamed_on, read_tensors
from dinov2_jax.weights.heads import head_path
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True, eq=False)
class DenseHead:
    """A head that gives a class or a depth for every pixel; trained here, or released.

    Attributes:
      kind: one of KINDS: "segmentation" is batch norm and a 1x1 convolution of one block
        ("linear") or of several ("+ms"), "depth_linear" a classifier of depth bins.
      params: of the module, see models/segmentation.py and models/depth.py.
      statistics: running statistics of "segmentation"; None for the others.
      blocks: 0-based, ascending; () for those of the reference, which the backbone's depth tells.
      low, high: metres; the least and the greatest depth. 0 for segmentation.
      class_names: K names, or () if they are unknown.
      colours: RGB of the classes, uint8 [K, 3], or [0, 3].
      name: how it is called in tables.
      identity: of the weights and data that it was trained on; "" if unknown.
      metadata: what else is known.
    """

    kind: str
    params: Mapping[str, Any]
    statistics: Statistics | None = None
    blocks: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 0.0
    class_names: tuple[str, ...] = ()
    colours: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    name: str = ""
    identity: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EvaluationError(f"a head of kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.is_depth and not 0 <= self.low < self.high:
            raise EvaluationError(
                f"the head gives depths from {self.low} to {self.high} m, which is no range; give "
                "low and high in metres, such as 0.001 and 10 for NYU, 0.001 and 80 for KITTI"
            )
        if self.class_names and len(self.class_names) != self.classes:
            raise EvaluationError(
                f"{len(self.class_names)} class names for {self.classes} classes; give one name a "
                "class, or none"
            )

    def __repr__(self) -> str:
        gives = f"{self.low:g} to {self.high:g} m" if self.is_depth else f"{self.classes} classes"
        return f"DenseHead({self.kind}, {gives}, reads {self.width} values, name={self.name!r})"

    @property
    def is_depth(self) -> bool:
        return self.kind != "segmentation"

    @property
    def classes(self) -> int:
        """K of a segmentation head; 0 of a depth head."""
        return 0 if self.is_depth else len(self.params["bias"])

    @property
    def width(self) -> int:
        """How many values of a patch it reads over all blocks; a depth head reads cls as well."""
        if self.kind == "depth_dpt":
            return SPREAD * self.params["readout_projects_0"]["kernel"].shape[0]
        return self.params["kernel"].shape[0]

    @property
    def norm(self) -> bool:
        """Whether it reads features after the backbone's final norm."""
        return not self.is_depth

    @property
    def form(self) -> Form:
        return Form(self.kind, self.low, self.high)

    @property
    def trained(self) -> Trained:
        return Trained(self.params, self.statistics)

    def blocks_of(self, model: VisionTransformer) -> tuple[int, ...]:
        """The blocks that it reads of a backbone.

        Raises:
          EvaluationError: the head belongs to a backbone of another width or depth.
        """
        width = model.dim * (2 if self.is_depth else 1)
        count, rest = divmod(self.width, width)
        blocks = self.blocks or read_blocks(self.kind, count, model.depth)
        known = count > 0 if self.blocks else count in (1, SPREAD)
        fits = known and not rest and len(blocks) == count
        fits = fits and list(blocks) == sorted(set(blocks))
        if not fits or blocks[0] < 0 or blocks[-1] >= model.depth:
            reads = f", of blocks {', '.join(map(str, self.blocks))}" if self.blocks else ""
            raise EvaluationError(
                f"the head {self.name or self.kind} reads {self.width} values{reads}, which a "
                f"backbone of width {model.dim} and depth {model.depth} does not have; load the "
                "backbone that it was trained on"
            )
        return blocks

    def predict(
        self,
        backbone: Backbone,
        pictures: Any,
        *,
        short_side: int = 0,
        window: int = 0,
        flip: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Any:
        """Predicts the class or the depth of every pixel.

        Args:
          backbone: the one that the head was trained on.
          pictures: as `features.extract.extract` takes them, of any sizes.
          short_side: px, to which the shorter side of the pictures is resized before; 0: their own
            size. The released segmentation heads learned from 512 px, +ms from 640 px and more.
          window: px; classes are predicted in overlapping squares of this side, as segmentation is
            evaluated (512 px, +ms 640 px), so that memory does not grow with the picture; 0: the
            picture as a whole.
          flip: average with the prediction for the mirrored picture, as depth is evaluated.
          max_pixels: larger pictures are unreadable.

        Returns:
          For one picture (a path, a PIL picture, an array [H, W, 3]) an array of its size, for
          several ones a list: classes as uint8 (uint16 for more than 255), or metres as float32.

        Raises:
          EvaluationError: the head does not fit the backbone, or a picture is too large at once.
          SourceError, FileNotFoundError: no pictures, or one that cannot be read.
        """
        blocks = self.blocks_of(backbone.model)
        options = Options(short_side, window, bool(flip), max_pixels)
        return predict(self.form, self.trained, blocks, backbone, pictures, options)

    def as_stored(self) -> StoredHead:
        """Parameters, statistics and metadata, as files keep them."""
        about = dict(self.metadata, blocks=list(self.blocks), name=self.name)
        about |= {"class_names": list(self.class_names), "identity": self.identity}
        about |= {"colours": np.asarray(self.colours).tolist()}
        if self.is_depth:
            about |= {"low": float(self.low), "high": float(self.high)}
        return StoredHead(self.kind, jax.tree.map(np.asarray, self.params), self.statistics, about)

    def save(self, path: str | Path) -> None:
        """Writes the head, whole or not at all; `load_dense` and `dinov2_jax.load_head` read it.

        Args:
          path: .safetensors, or .pth in the layout of the released files, which the original code
            opens; what that layout cannot hold goes into a .json beside it.

        Raises:
          WeightsError: another ending, or no torch for a .pth.
        """
        write_dense(Path(path).expanduser(), self.as_stored())


# ------------------------------------------------------------------------------------- from files
def load_dense(
    path_or_name: str | Path,
    wanted: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
) -> DenseHead:
    """Loads a segmentation or depth head: ours, or one released with DINOv2.

    Args:
      path_or_name: a .safetensors or .pth; or a name, such as "dinov2_vits14_ade20k_linear".
      wanted: "segmentation" or "depth", where nothing else will do.
      low, high: metres; the range of a depth head whose file and name do not tell it.

    Raises:
      WeightsError: the file is missing or damaged, holds something else, or has no range.
    """
    path = head_path(path_or_name)
    return dense_from_stored(dense_of(read_tensors(path)), path, wanted, low=low, high=high)


def dense_from_stored(
    stored: StoredHead,
    path: Path,
    wanted: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
) -> DenseHead:
    """Makes the object of what a file holds; arguments and errors as `load_dense`."""
    kind, about = stored.kind, dict(stored.about)
    if kind == "segmentation" and (low is not None or high is not None):
        raise EvaluationError(f"{path} is a segmentation head; leave out low and high")
    if wanted and not kind.startswith(wanted):
        found = "segmentation" if kind == "segmentation" else "depth"
        raise WeightsError(f"{path} is a {found} head, but a {wanted} head is needed; name one")
    low = about.pop("low", None) if low is None else low
    high = about.pop("high", None) if high is None else high
    if kind != "segmentation" and (low is None or high is None):
        raise WeightsError(
            f"{path} does not tell the range of its depth, and its name has neither nyu nor kitti; "
            "give it in metres: load_head(..., low=0.001, high=10.0) for NYU, high=80.0 for KITTI"
        )
    with blamed_on(path):
        _check_shapes(stored, path)
        return DenseHead(
            kind, stored.params, stored.statistics,
            blocks=tuple(map(int, about.pop("blocks", ()))),
            low=0.0 if low is None else low,
            high=0.0 if high is None else high,
            class_names=tuple(map(str, about.pop("class_names", ()))),
            colours=np.array(about.pop("colours", ()), np.uint8).reshape(-1, 3),
            name=about.pop("name", path.stem),
            identity=about.pop("identity", ""),
            metadata=about,
        )  # fmt: skip


def _check_shapes(stored: StoredHead, path: Path) -> None:
    """Raises WeightsError where tensors do not fit each other."""
    params = stored.params
    if stored.kind == "depth_dpt":
        dim, count = params["readout_projects_0"]["kernel"].shape[1], SPREAD
    else:
        dim, count = params["kernel"].shape[0] // (1 if stored.statistics else 2), 1
    if stored.statistics and {x.shape for x in stored.statistics[:2]} != {(dim,)}:
        raise WeightsError(f"{path} is no whole head: running statistics of other channels")
    level = Level(jnp.zeros((1, 1, 1, dim)), jnp.zeros((1, dim)))
    module, given = module_of(Form(stored.kind), params), [level] * count
    arguments = ([level.patches], stored.statistics) if stored.statistics else (given,)
    wanted = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    want, have = (flatten_dict(tree, sep="/") for tree in (wanted, params))
    wrong = [name for name in want if want[name].shape != have[name].shape]
    if wrong:
        raise WeightsError(
            f"{path} is no whole head: {wrong[0]} does not fit the other tensors; download it again"
        )
