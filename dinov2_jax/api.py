"""The functions of `dinov2_jax`, and what they return."""

import dataclasses
import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax import main
from dinov2_jax.config.checks import check_values
from dinov2_jax.config.files import ConfigError, leaves, load_config
from dinov2_jax.config.overrides import override
from dinov2_jax.data.decode import MAX_PIXELS, DecodeSpec, why_unreadable
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.stream import stream_pictures
from dinov2_jax.eval import results, runner
from dinov2_jax.eval.given import data_settings
from dinov2_jax.eval.rules import RULES
from dinov2_jax.features.extract import Features, as_source, extract
from dinov2_jax.features.request import make_request
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.heads.linear import LinearHead, from_stored
from dinov2_jax.heads.load import load_head
from dinov2_jax.weights import load as weights
from dinov2_jax.weights.heads import linear_heads
from dinov2_jax.weights.hub import RELEASED


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Backbone(weights.Backbone):
    """A backbone with its weights; see `dinov2_jax.load`, which returns it."""

    def __post_init__(self) -> None:
        linear = {name: Classifier(head, self) for name, head in linear_heads(self.heads).items()}
        object.__setattr__(self, "heads", {**self.heads, **linear})

    def __repr__(self) -> str:
        model, given = self.model, self.preprocessing
        return (
            f"Backbone from {self.source} ({self.layout})\n"
            f"  width {model.dim}, {model.depth} blocks, {model.heads} attention heads, patches of "
            f"{model.patch_size} px, {model.registers} registers, "
            f"{sum(leaf.size for leaf in jax.tree.leaves(self.params)):,} weights\n"
            f"  pictures: shorter side to {given.resize_px} px, central square of "
            f"{given.image_px} px, mean {given.mean}, std {given.std}\n"
            f"  heads: {', '.join(self.heads) or 'none'}"
        )

    def preprocess(self, pictures: Any) -> np.ndarray:
        """Brings pictures, as `dinov2_jax.extract` takes them, to what `model.apply` takes.

        Returns:
          float32 [n, S, S, C]: the central squares, normalised, which the module does not do.

        Raises SourceError for no pictures, an unknown kind, or one that cannot be read.
        """
        request = make_request(self, ("cls",), (-1,), True, "center_crop", ())
        source = as_source(pictures, request.channels)
        decoding = DecodeSpec(MAX_PIXELS, request.channels)
        rows = np.arange(len(source))
        squares = []
        for row, square in stream_pictures(source, rows, request.fit, decoding=decoding, workers=0):
            if square is None:
                reason = why_unreadable(source, row, decoding)
                raise SourceError(f"{source.name(row)} cannot be read ({reason}); leave it out")
            squares.append(square)
        given = self.preprocessing
        return np.asarray(normalize(jnp.asarray(np.stack(squares)), given.mean, given.std))

    def __call__(self, pictures: Any, **options: Any) -> Features:
        """Computes features: `dinov2_jax.extract(backbone, pictures, **options)`."""
        return extract(self, pictures, **options)

    def load_head(self, path_or_name: str | Path) -> "Classifier | DensePredictor":
        """Loads a head for this backbone: see `dinov2_jax.load_head`."""
        head = load_head(path_or_name, dim=self.model.dim)
        if isinstance(head, DenseHead):
            head.blocks_of(self.model)  # raises EvaluationError where it does not fit
            return DensePredictor(head, self)
        return Classifier(head.as_stored(), self)


class Classifier(dict[str, Any]):
    """A linear classifier and the backbone it reads; as a mapping, what files hold of it."""

    def __init__(self, stored: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__(stored)
        self._backbone = backbone

    def __repr__(self) -> str:
        return repr(self.head)

    @property
    def head(self) -> LinearHead:
        """The classifier without the backbone: weights, input, class names; saves itself."""
        return from_stored(self)

    def logits(self, pictures: Any) -> np.ndarray:
        """fp32 [n, K] of pictures as `extract` takes them; an unreadable one raises SourceError."""
        head = self.head
        return head.logits(head.columns(self._backbone, pictures, on_error="raise"))

    def predict(self, pictures: Any) -> np.ndarray:
        """Predicts the class of each picture: [n] names, or numbers if the names are unknown."""
        numbers, names = self.logits(pictures).argmax(axis=1), self.head.class_names
        return np.array(names)[numbers] if names else numbers


@dataclasses.dataclass(frozen=True)
class DensePredictor:
    """A segmentation or depth head and the backbone it reads."""

    head: DenseHead
    backbone: Backbone

    def predict(self, pictures: Any, **options: Any) -> Any:
        """The class or the depth of every pixel: see `heads.dense_head.DenseHead.predict`."""
        return self.head.predict(self.backbone, pictures, **options)


class Evaluation(dict[str, Any]):
    """What results.json holds, with the metrics as a table; a notebook shows the table."""

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """{protocol: {data set: {metric: value}}}."""
        return {
            protocol: {
                data: {name: metric["value"] for name, metric in entry["metrics"].items()}
                for data, entry in sets.items()
            }
            for protocol, sets in self["results"].items()
        }

    def table(self) -> str:
        """The table that the command prints."""
        return results.table(self["results"])

    __repr__ = table

    def _repr_html_(self) -> str:
        lines = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, rows in (("th", [results.HEAD]), ("td", results.rows_of(self["results"])))
            for row in rows
        ]
        return f"<table>{''.join(lines)}</table>"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the backbones released with DINOv2, which `load` takes; `pattern` has wildcards.

    Example:
      >>> dinov2_jax.list_models("*b14*")
      ['dinov2_vitb14', 'dinov2_vitb14_reg']
    """
    return [name for name in RELEASED if fnmatchcase(name, pattern)]


def load(
    name_or_path: str | Path,
    *,
    which: str = "teacher",
    architecture: str = "",
    heads: int | None = None,
    allow: Sequence[str] = (),
    interpolate_offset: float | None = None,
    interpolate_antialias: bool | None = None,
    dtype: Any = None,
) -> Backbone:
    """Loads a backbone with its weights.

    Args:
      name_or_path: a name of `list_models()` or its Hugging Face repository; or the path of a run,
        a checkpoint, a bundle, a .pth of the original (released or a training checkpoint), a
        Hugging Face directory, or timm's safetensors.
      which: "teacher" or "student" of a training checkpoint.
      architecture: a name of `list_models()` that the weights must fit; "": any.
      heads: attention heads, where neither the file nor the width tells.
      allow: names of tensors or modules that may be left over; "mask_token" where it may be missing
        (only pretraining needs it); "float16" or "bfloat16" for files in half precision; fields of
        config.json or preprocessor_config.json that cannot be followed and may be passed over.
      interpolate_offset, interpolate_antialias: how positions are resampled for other sizes, see
        `models/positions.py`; None: as the weights say, otherwise as the original does. Weights
        that were fine-tuned under transformers take an offset of 0.
      dtype: of the matrix products; None: float32. Parameters are float32.

    Returns:
      A backbone: `backbone(pictures)` gives features, `backbone.preprocess(pictures)` float32
      [n, S, S, 3] for the module, `model, params = backbone` its two parts.
      `backbone.heads["classifier"].predict(pictures)` names classes, if the weights have such a
      head; `backbone.load_head(path)` loads another one, also of pixels.

    Raises:
      WeightsError: no such weights, or tensors that are missing, left over or of another shape.
      CheckpointError: a checkpoint of ours that cannot be read.

    Example:
      >>> backbone = dinov2_jax.load("runs/first")
      >>> backbone(["photos/1.jpg", "photos/2.jpg"])["cls"].shape
      (2, 64)
      >>> model, params = backbone
      >>> images = backbone.preprocess("photos/1.jpg")
      >>> model.apply({"params": params}, images)["patches"].shape
      (1, 4, 64)
    """
    options = {"which": which, "architecture": architecture, "heads": heads, "allow": allow}
    positions = {
        "interpolate_offset": interpolate_offset,
        "interpolate_antialias": interpolate_antialias,
    }
    return Backbone(**vars(weights.load(name_or_path, dtype=dtype, **options, **positions)))


def pretrain(config: str | Path | ConfigDict, workdir: str | Path, **overrides: Any) -> Path:
    """Trains a backbone without labels, as the task "train" does on the command line.

    Args:
      config: a recipe's name such as "quickstart", a configuration file's path, or a ConfigDict.
      workdir: the run directory; the same one again continues the run.
      overrides: fields of the configuration, groups as mappings: total_steps=1000,
        model={"depth": 6}, data={"source": "folder", "path": "photos"}.

    Returns:
      The run directory, which `load` takes.

    Raises:
      ConfigError: a field or value that cannot be.
      CheckpointError, SourceError, WeightsError: see the message.

    Example:
      >>> run = dinov2_jax.pretrain(
      ...     "quickstart", "runs/first", total_steps=2, batch_size=8, group_size=8,
      ...     data={"source": "folder", "path": "photos", "workers": 0},
      ...     model={"depth": 2}, crops={"local_number": 2}, eval={"every_steps": 0},
      ... )
      >>> dinov2_jax.load(run).model.dim
      64
    """
    settings = _configuration(config, overrides)
    if settings.task != "train":
        raise ConfigError(
            f"a configuration of the task {settings.task!r} trains nothing; try 'quickstart'"
        )
    main.train(settings, os.fspath(workdir))
    return Path(workdir)


def evaluate(
    protocols: str | Sequence[str],
    backbone: weights.Backbone | str | Path,
    *,
    train: Any = "",
    val: Any = "",
    test: Any = "",
    workdir: str | Path = "",
    **settings: Any,
) -> Evaluation:
    """Evaluates a backbone, as the task "eval" does on the command line.

    Args:
      protocols: one or several of knn, few_shot, logreg, transfer, linear, linear_cached, finetune,
        robustness, retrieval and video.
      backbone: from `load`, or what `load` takes.
      train: the labelled pictures that classifiers learn from: a folder with one folder a class,
        or a pair (pictures, labels), where pictures are paths, arrays or PIL pictures.
      val: those that hyper-parameters are chosen on, in the same form; "": see the protocol.
      test: those that are judged, in the same form.
      workdir: where results.json, results.html and features go. "": <run>/eval/<step>/<data> for
        weights of one of our runs; otherwise nothing is kept.
      settings: fields of configs/eval/default.py, groups as mappings: batch_size=64,
        knn={"ks": (5, 10)}, data={"set": "cifar10", "path": "/data/cifar10"}.

    Returns:
      `Evaluation`: what results.json holds, with `.metrics` and `.table()`.

    Raises:
      ConfigError, SourceError, WeightsError, EvaluationError: what cannot be evaluated.

    Example:
      >>> found = dinov2_jax.evaluate(
      ...     "knn", "runs/first", train="labelled/train", test="labelled/val", knn={"ks": (1,)}
      ... )
      >>> list(found.metrics["knn"])
      ['labelled']
    """
    given = isinstance(backbone, weights.Backbone)
    with tempfile.TemporaryDirectory() as scratch:
        config = load_config("eval/default")
        override(config, data_settings({"train": train, "val": val, "test": test}, Path(scratch)))
        config.protocols = (protocols,) if isinstance(protocols, str) else tuple(protocols)
        config.checkpoint = "" if given else os.fspath(backbone)
        config = _configuration(config, settings)
        check_values(config, RULES)
        loaded = backbone if given else runner.load_backbone(config)
        if loaded.layout != "run":
            workdir = workdir or Path(scratch, "results")
        return Evaluation(runner.evaluate(config, os.fspath(workdir), loaded))


def _configuration(config: str | Path | ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with overrides, locked: each names a field, or a group as a mapping."""
    if isinstance(config, ConfigDict):
        config = config.copy_and_resolve_references().unlock()
    else:
        config = load_config(os.fspath(config))
    override(config, leaves(overrides))
    return config.lock()
