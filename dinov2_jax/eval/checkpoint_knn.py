"""Task "knn": the k-NN protocol on any checkpoint, whose own configuration says what it holds."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.checkpoint import read_config, restore_params
from dinov2_jax.configuration import ConfigError
from dinov2_jax.data.pipeline import eval_batches
from dinov2_jax.data.sources import Source, check_same_classes, open_source
from dinov2_jax.distributed import is_main, main_first
from dinov2_jax.eval.features import Forward, cls_forward, extract_features
from dinov2_jax.eval.knn import all_settings, knn_table
from dinov2_jax.models.vit import from_config
from dinov2_jax.monitor import write_json


def evaluate(config: ConfigDict, workdir: str = "") -> dict[str, Any]:
    """Evaluates `config.checkpoint`, prints a table with the protocol and writes knn.json.

    Args:
      config: configs/eval/knn.py; empty fields are taken from the checkpoint's configuration.
      workdir: where knn.json goes; by default the checkpoint's step directory's run.

    Raises:
      ConfigError: without a checkpoint or labels.
      CheckpointError: when the checkpoint cannot be read.
    """
    if not config.checkpoint:
        raise ConfigError("no checkpoint given; add --config.checkpoint=runs/<name>")
    stored, step_dir = read_config(Path(config.checkpoint).expanduser())
    stored_size = stored["crops"]["global_size"]
    model = from_config(stored["model"], stored_size)
    params = restore_params(step_dir, config.which)["backbone"]
    sizes = {name: config[name] or stored["eval"][name] for name in ("resize_size", "image_size")}
    _check_image_size(sizes["image_size"], model.patch_size)
    forward = cls_forward(model, stored["colour"]["mean"], stored["colour"]["std"])
    data = _data_settings(config, stored)
    splits = ("train_split", "test_split")
    with main_first():
        sources = {split: _labelled(data, data[split]) for split in splits}
    check_same_classes(*sources.values())
    sets = {
        split: _features(forward, params, sources[split], data[split], config, data, sizes)
        for split in splits
    }
    results = all_settings(sets["train_split"], sets["test_split"], config)
    report = _protocol(config, stored, step_dir, data, sizes, sets) | {"results": results}
    if not is_main():  # all processes have done the same
        return report
    print(knn_table(results))
    if report["ks_beyond_bank"]:
        beyond = ", ".join(map(str, report["ks_beyond_bank"]))
        print(f"k = {beyond}: the bank has {report['train_images']} pictures, and all of them vote")
    print("  ".join(f"{name} {value}" for name, value in report.items() if name != "results"))
    folder = Path(workdir).expanduser() if workdir else step_dir.parent.parent
    write_json(folder / "knn.json", report)
    return report


def _check_image_size(image_size: int, patch_size: int) -> None:
    if image_size % patch_size:
        raise ConfigError(
            f"config.image_size {image_size} px is no multiple of the checkpoint's patch size "
            f"{patch_size}; nearest valid: "
            f"--config.image_size={max(1, round(image_size / patch_size)) * patch_size}"
        )


def _data_settings(config: ConfigDict, stored: dict[str, Any]) -> dict[str, Any]:
    """The data of the configuration, each empty field filled from the checkpoint's."""
    # Runs from before this field store none.
    known = {"in_channels": stored["model"].get("in_channels", 3)}
    known |= {**stored["data"], **stored["eval"]}
    own = config.data.source or config.data.path
    given = {name: value for name, value in config.data.items() if value not in ("", None)}
    merged = {**known, **given}
    if own and "labels" not in given:
        merged["labels"] = "auto"
    return merged


def _labelled(data: dict[str, Any], split: str) -> Source:
    source = open_source(
        data["source"],
        data["path"],
        split=split,
        labels=data["labels"],
        cache_dir=data["cache_dir"] or None,
    )
    if source.labels is None:
        raise ConfigError(
            f"data source {data['source']!r} has no labels, which k-NN needs; use "
            "--config.data.labels=folders if the folders' names are the classes, or name another "
            "data set with --config.data.source and --config.data.path"
        )
    return source


def _features(
    forward: Forward,
    params: Any,
    source: Source,
    split: str,
    config: ConfigDict,
    data: dict[str, Any],
    sizes: dict[str, int],
) -> tuple[np.ndarray, np.ndarray]:
    labels = source.labels
    assert labels is not None
    indices = np.flatnonzero(labels >= 0)
    batches = eval_batches(
        source,
        indices,
        batch_size=config.batch_size,
        resize_size=sizes["resize_size"],
        image_size=sizes["image_size"],
        max_pixels=data["max_pixels"],
        channels=data["in_channels"],
        workers=config.data.workers,
    )
    title = f"features of {split}" if is_main() else ""
    features, used = extract_features(
        forward, params, batches, total=len(indices), description=title
    )
    return features, labels[used]


def _protocol(
    config: ConfigDict,
    stored: dict[str, Any],
    step_dir: Path,
    data: dict[str, Any],
    sizes: dict[str, int],
    sets: dict[str, Any],
) -> dict[str, Any]:
    return {
        "checkpoint": str(step_dir),
        "step": int(step_dir.name),
        "which": config.which,
        "model": stored["model"]["variant"],
        "data": f"{data['source']} {data['path']}".strip(),
        "train_images": len(sets["train_split"][1]),
        "test_images": len(sets["test_split"][1]),
        **sizes,
        "temperature": config.temperature,
        "ks_beyond_bank": [k for k in config.ks if k > len(sets["train_split"][1])],
        "precision": "float32",
    }
