"""What the functions of `dinov2_jax` return and do; `dinov2_jax/__init__.py` documents them."""

import dataclasses
import html
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dinov2_jax import main
from dinov2_jax.config.checks import check_values
from dinov2_jax.config.files import ConfigError, leaves, load_config
from dinov2_jax.config.overrides import override
from dinov2_jax.data.decode import MAX_PIXELS, DecodeSpec, why_unreadable
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.stream import stream_pictures
from dinov2_jax.eval import results, runner
from dinov2_jax.eval.rules import RULES
from dinov2_jax.features.extract import Features, as_source, extract
from dinov2_jax.features.request import make_request
from dinov2_jax.heads.linear import LinearHead, from_stored, load_head
from dinov2_jax.weights import load as weights
from dinov2_jax.weights.heads import is_linear


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Backbone(weights.Backbone):
    """A backbone with its weights, as `dinov2_jax.load` returns it.

    `backbone(pictures)` gives features, `backbone.preprocess(pictures)` what the module takes, and
    `model, params = backbone` takes it apart. Linear classifiers among `heads` predict classes.
    """

    def __post_init__(self) -> None:
        bound = {
            name: Classifier(head, self) if is_linear(head) else head
            for name, head in self.heads.items()
        }
        object.__setattr__(self, "heads", bound)

    def __repr__(self) -> str:
        model, given = self.model, self.preprocessing
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        heads = ", ".join(self.heads) or "none"
        return (
            f"Backbone from {self.source} ({self.layout})\n"
            f"  width {model.dim}, {model.depth} blocks, {model.heads} attention heads, patches of "
            f"{model.patch_size} px, {model.registers} registers, {count:,} weights\n"
            f"  pictures: shorter side to {given.resize_px} px, central square of "
            f"{given.image_px} px, mean {given.mean}, std {given.std}\n"
            f"  heads: {heads}"
        )

    def preprocess(self, pictures: Any) -> np.ndarray:
        """Brings pictures to what `model.apply` takes.

        Args:
          pictures: as `dinov2_jax.extract` takes them: a path, a PIL picture, an array uint8
            [H, W, 3], a list of one of these, or a folder.

        Returns:
          float32 [n, S, S, C]: the central squares, normalised. The module itself normalises
          nothing, so it must not be given raw uint8 pictures.

        Raises:
          SourceError: no pictures, pictures of an unknown kind, or one that cannot be read.
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
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return np.asarray(normalize(jnp.asarray(np.stack(squares)), mean, std))

    def __call__(self, pictures: Any, **options: Any) -> Features:
        """Computes features: `dinov2_jax.extract(backbone, pictures, **options)`."""
        return extract(self, pictures, **options)

    def load_head(self, path: str | Path) -> "Classifier":
        """Loads a linear classifier for this backbone: see `heads.linear.load_head`."""
        return Classifier(load_head(path, self.model.dim).as_stored(), self)


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
        """Computes fp32 [n, K] for pictures as `dinov2_jax.extract` takes them.

        Raises:
          SourceError: see `extract`; an unreadable picture is an error.
        """
        head, depth = self.head, self._backbone.model.depth
        layers = range(depth - head.blocks, depth)
        kinds = ("cls", "mean_patch") if head.avgpool else ("cls",)
        found = extract(self._backbone, pictures, features=kinds, layers=layers, on_error="raise")
        several = len(layers) > 1
        names = [f"cls_block_{layer}" if several else "cls" for layer in layers]
        if head.avgpool:
            names.append(f"mean_patch_block_{depth - 1}" if several else "mean_patch")
        return head.logits([found[name] for name in names])

    def predict(self, pictures: Any) -> np.ndarray:
        """Predicts the class of each picture: [n] names, or numbers if the names are unknown."""
        numbers, names = self.logits(pictures).argmax(axis=1), self.head.class_names
        return np.array(names)[numbers] if names else numbers


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

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        lines = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, rows in (("th", [results.HEAD]), ("td", results.rows_of(self["results"])))
            for row in rows
        ]
        return f"<table>{''.join(lines)}</table>"


def load(name_or_path: str | Path, **options: Any) -> Backbone:
    """See `dinov2_jax.load`."""
    return as_backbone(weights.load(name_or_path, **options))


def as_backbone(found: weights.Backbone) -> Backbone:
    """The same backbone with the methods of `Backbone`."""
    return Backbone(**{f.name: getattr(found, f.name) for f in dataclasses.fields(found)})


# ---------------------------------------------------------------------------------------- tasks
def pretrain(config: str | Path | ConfigDict, workdir: str | Path, **overrides: Any) -> Path:
    """See `dinov2_jax.pretrain`."""
    settings = _configuration(config, overrides)
    if settings.task != "train":
        raise ConfigError(
            f"this is a configuration of the task {settings.task!r}; pretrain takes one of the task"
            " 'train', such as 'quickstart'"
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
    """See `dinov2_jax.evaluate`."""
    given = isinstance(backbone, weights.Backbone)
    with tempfile.TemporaryDirectory() as scratch:
        config = load_config("eval/default")
        splits = {"train": train, "val": val, "test": test}
        override(config, _data_settings(splits, Path(scratch)))
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


def _data_settings(splits: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Fields of config.data for splits that are folders, or pairs (pictures, labels)."""
    found: dict[str, Any] = {}
    parents = set()
    for split, given in splits.items():
        if isinstance(given, str | os.PathLike) and os.fspath(given):
            path = Path(given).expanduser()
            found[f"data.{split}_path"] = os.fspath(path)
            parents.add(path.absolute().parent)
        elif not isinstance(given, str):
            found |= _write_split(split, given, scratch / "pictures")
            parents.add(scratch / "pictures")
    if found:
        found["data.source"] = "folder"
        found.setdefault("data.labels", "folders")
    if len(parents) == 1:  # the name of the data set is that of the folder of its splits
        found["data.path"] = os.fspath(parents.pop())
    return found


def _write_split(split: str, given: Any, folder: Path) -> dict[str, str]:
    """Writes a list of the pictures and a list of their labels, which `config.data` can name."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(
            f"{split} must be a folder with a folder for each class, or a pair (pictures, labels), "
            f"but got {type(given).__name__}"
        )
    pictures, labels = given
    if len(pictures) != len(labels):
        raise ConfigError(
            f"{split} has {len(pictures):,} pictures and {len(labels):,} labels; give one label a "
            "picture"
        )
    folder.mkdir(exist_ok=True)
    listed, classes = folder / f"{split}.txt", folder / f"{split}-classes.txt"
    listed.write_text("".join(f"{path}\n" for path in _paths(pictures, folder / split)))
    classes.write_text("".join(f"{label}\n" for label in labels))
    return {f"data.{split}_path": os.fspath(listed), f"data.{split}_labels": os.fspath(classes)}


def _paths(pictures: Sequence[Any], folder: Path) -> Iterator[str]:
    """Absolute paths of the pictures; arrays and PIL pictures become PNG files."""
    for row, picture in enumerate(pictures):
        if isinstance(picture, str | os.PathLike):
            yield os.path.abspath(os.path.expanduser(picture))
            continue
        folder.mkdir(exist_ok=True)
        drawn = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        drawn.save(folder / f"{row:07}.png")
        yield os.fspath(folder / f"{row:07}.png")
