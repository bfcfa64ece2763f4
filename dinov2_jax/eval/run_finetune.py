"""Fine-tuning end to end, or of low-rank factors (paper section 7.1, table 5)."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.eval.run_frozen import check_classifiers
from dinov2_jax.heads.finetune.classifier import Finetuned, predict
from dinov2_jax.heads.finetune.lora import Lora
from dinov2_jax.heads.finetune.train import STATE_FILE, FinetuneSettings, check_settings, finetune
from dinov2_jax.heads.linear import LinearHead, load_head
from dinov2_jax.metrics.classification import mean_per_class_accuracy, top_accuracy
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.weights.bundle import write_bundle

# Fields of config.finetune that `FinetuneSettings` has under the same name.
_FIELDS = (
    *("iterations", "batch_size", "group_size", "lr", "min_lr", "warmup_iterations"),
    *("layerwise_decay", "weight_decay", "drop_path", "smoothing", "mixup", "cutmix", "ema"),
    *("avgpool", "seed", "save_every"),
)


def open_finetune(inputs: Inputs, others: Sequence[str]) -> LinearHead | None:
    """The linear classifier to begin with, if one is named.

    Raises:
      ConfigError, EvaluationError, FileNotFoundError: settings, classes or a head that do not fit.
    """
    check_classifiers(inputs, others)
    check_settings(_settings(inputs.config.finetune))
    head = inputs.config.finetune.head
    return load_head(Path(head).expanduser()) if head else None


def run_finetune(inputs: Inputs) -> Outcome:
    """Trains on train, reports on test; the weights are left in <workdir>/finetune/weights."""
    assert inputs.data is not None
    train, test = inputs.data.splits["train"], inputs.data.splits["test"]
    assert train.labels is not None and test.labels is not None
    settings = _settings(inputs.config.finetune)
    backbone, data = inputs.backbone, inputs.config.data
    how: dict[str, Any] = {"workers": data.workers, "max_pixels": data.max_pixels}
    found = finetune(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        train,
        train.labels,
        len(inputs.data.class_names),
        settings,
        head=inputs.opened,
        class_names=inputs.data.class_names,
        folder=inputs.folder,
        identity=inputs.identity,
        **how,
    )
    logits, rows = predict(
        found,
        backbone.preprocessing,
        test,
        np.arange(len(test)),
        batch_size=inputs.config.batch_size,
        description="fine-tuned, on test" if is_main() else "",
        **how,
    )
    _keep(inputs, found)
    labels = test.labels[rows]
    numbers = {
        **{f"top{n}": top_accuracy(logits, labels, n) for n in (1, 5)},
        "mean_per_class": mean_per_class_accuracy(logits, labels),
        "unreadable": len(test) - len(rows),
    }
    protocol = {"trained": "LoRA factors and head" if settings.lora else "all weights"}
    same = settings.lora is None and settings.iterations >= 50_000
    return Outcome({"top-1": numbers["top1"]}, numbers, protocol, comparable=same)


def _settings(config: ConfigDict) -> FinetuneSettings:
    lora = Lora(config.lora_rank, config.lora_alpha) if config.lora_rank else None
    return FinetuneSettings(**{name: config[name] for name in _FIELDS}, lora=lora)


def _keep(inputs: Inputs, found: Finetuned) -> None:
    """Stores backbone and classifier as one bundle, which `load` takes; the state goes."""
    if not is_main():
        return
    place = inputs.folder / "weights"
    shutil.rmtree(place, ignore_errors=True)  # of other settings, or of before a kill
    origin = f"fine-tuned from {inputs.backbone.source}"
    heads = {"classifier": found.head.as_stored()}
    write_bundle(place, found.model, found.params, inputs.backbone.preprocessing, origin, heads)
    inputs.folder.joinpath(STATE_FILE).unlink(missing_ok=True)
