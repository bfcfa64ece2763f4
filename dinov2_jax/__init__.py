"""DINOv2 in JAX: self-supervised training of image features, end to end.

    load         weights by name or path
    list_models  the released backbones
    extract      features of pictures
    evaluate     k-NN, linear probes and other protocols
    pretrain     training

Importing this package loads nothing else: data workers and command-line errors must not wait for
JAX. What a function needs is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from dinov2_jax.api import Backbone, Evaluation
    from dinov2_jax.features.extract import Features

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "extract", "list_models", "load", "pretrain"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the backbones released with DINOv2, which `load` takes.

    Args:
      pattern: with wildcards.

    Example:
      >>> dinov2_jax.list_models("*b14*")
      ['dinov2_vitb14', 'dinov2_vitb14_reg']
    """
    from fnmatch import fnmatchcase

    from dinov2_jax.weights import hub

    return [name for name in hub.list_models() if fnmatchcase(name, pattern)]


def load(
    name_or_path: str | Path,
    *,
    which: str = "teacher",
    architecture: str = "",
    heads: int | None = None,
    allow: Sequence[str] = (),
    dtype: Any = None,
) -> Backbone:
    """Loads a backbone with its weights.

    Args:
      name_or_path: a name of `list_models()`, or the path of a run, a checkpoint, a bundle, a .pth
        of the original, a Hugging Face directory, or timm's safetensors.
      which: "teacher" or "student" of a training checkpoint.
      architecture: a name of `list_models()` that the weights must fit; "": any.
      heads: attention heads, where neither the file nor the width tells.
      allow: names of tensors that may be left over; "mask_token" where it may be missing;
        "float16" or "bfloat16" for files in half precision.
      dtype: of the matrix products; None: float32. Parameters are float32.

    Returns:
      A backbone: `backbone(pictures)` gives features, `backbone.preprocess(pictures)` float32
      [n, S, S, 3] for the module, `model, params = backbone` its two parts.
      `backbone.heads["classifier"].predict(pictures)` names classes, if the weights have such a
      head; `backbone.load_head(path)` loads another one.

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
    from dinov2_jax import api

    options = {} if dtype is None else {"dtype": dtype}
    return api.load(
        name_or_path, which=which, architecture=architecture, heads=heads, allow=allow, **options
    )


def extract(
    backbone: Any,
    pictures: Any,
    *,
    features: Sequence[str] = ("cls",),
    layers: Sequence[int] = (-1,),
    norm: bool = True,
    policy: str = "center_crop",
    size: Sequence[int] = (),
    batch_size: int = 64,
    dtype: Any = None,
    workers: int = 0,
    max_pixels: int = 100_000_000,
    devices: Sequence[Any] | None = None,
    on_error: str | None = None,
) -> Features:
    """Computes features of pictures that fit into memory; the task "embed" takes any number.

    Args:
      backbone: from `load`, or what `load` takes.
      pictures: one picture: a path, a PIL picture, or uint8 [H, W, 3], [H, W, 1] or [H, W]; several
        pictures: a list of one of these, or uint8 [n, H, W, 3]; many pictures: a folder, a text
        file with one path a line, a tar or ArrayRecord file.
      features: some of "cls" [n, D], "registers" [n, R, D], "mean_patch" [n, D] and "patches"
        [n, P, D].
      layers: blocks, from the end if negative; with several the columns are "cls_block_5", ...
      norm: features after the backbone's final norm, or before it.
      policy: "center_crop", "resize" or "pad".
      size: px; () for what the weights say.
      batch_size: pictures at a time over all devices, rounded up to a multiple of these.
      dtype: of the matrix products; None: the backbone's.
      workers: loader processes; 0 decodes on a thread.
      max_pixels: larger pictures count as unreadable.
      devices: all of this process by default.
      on_error: "raise" for an unreadable picture, or "nan" for a row of NaN. None: "raise" for
        pictures passed one by one; "nan" and a warning for a folder or a file of many.

    Returns:
      `Features`: float32 arrays by column, one row a picture.

    Raises:
      ConfigError: features, layers, policy, size or on_error that cannot be had.
      SourceError: nothing found, pictures of an unknown kind, or an unreadable picture.
      WeightsError: see `load`.

    Example:
      >>> found = dinov2_jax.extract("runs/first", "photos", features=("cls", "patches"))
      >>> found["cls"].shape, found["patches"].shape, found.names[0]
      ((8, 64), (8, 4, 64), '0.jpg')
    """
    given = locals()
    from dinov2_jax.features.extract import extract as run

    return run(**given)


def evaluate(
    protocols: str | Sequence[str],
    backbone: Any,
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
    from dinov2_jax import api

    return api.evaluate(
        protocols, backbone, train=train, val=val, test=test, workdir=workdir, **settings
    )


def pretrain(config: str | Path | ConfigDict, workdir: str | Path, **overrides: Any) -> Path:
    """Trains a backbone without labels, as the task "train" does on the command line.

    Args:
      config: a recipe's name such as "quickstart", the path of a configuration file, or a
        ConfigDict.
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
    from dinov2_jax import api

    return api.pretrain(config, workdir, **overrides)
