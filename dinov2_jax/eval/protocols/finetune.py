"""Fine-tuning end to end, or of low-rank factors (paper section 7.1, table 5)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.eval.protocols.linear import accuracies, check_classifiers
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Finding, Task, Work
from dinov2_jax.heads.finetune.classifier import Finetuned, predict
from dinov2_jax.heads.finetune.lora import Lora
from dinov2_jax.heads.finetune.optimizer import FinetuneSettings, check_settings
from dinov2_jax.heads.finetune.train import STATE_FILE, finetune
from dinov2_jax.heads.linear import LinearHead, load_head
from dinov2_jax.parallel.processes import is_main


def open(context: Context) -> list[Task]:
    """Trains on train and reports on test.

    Raises:
      ConfigError, EvaluationError, FileNotFoundError: settings, classes or a head that do not fit.
    """
    check_classifiers(context)
    config = context.config.finetune
    shared = {field.name for field in dataclasses.fields(FinetuneSettings)} & set(config)
    lora = Lora(config.lora_rank, config.lora_alpha) if config.lora_rank else None
    settings = FinetuneSettings(**{name: config[name] for name in shared}, lora=lora)
    check_settings(settings)
    start = load_head(config.head, context.backbone.model.dim) if config.head else None
    needs = tuple(context.need(split, None) for split in ("train", "test"))

    def run(work: Work) -> Iterator[Finding]:
        found = _train(context, settings, start, work.folder)
        _keep(context, found, work.folder)
        yield from _judge(context, found)
        yield {"trained": "LoRA factors and head" if settings.lora else "all weights"}

    data = context.data
    return [Task(data.name, needs, context.settings("finetune", **data.splits), run)]


def _train(
    context: Context, settings: FinetuneSettings, start: LinearHead | None, folder: Path
) -> Finetuned:
    backbone, train = context.backbone, context.data.splits["train"]
    assert train.labels is not None
    return finetune(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        train,
        train.labels,
        len(context.data.class_names),
        settings,
        head=start,
        class_names=context.data.class_names,
        folder=folder,
        identity=context.identity(train),
        **context.reading,
    )


def _judge(context: Context, found: Finetuned) -> Iterator[Finding]:
    test = context.data.splits["test"]
    assert test.labels is not None
    logits, rows = predict(
        found,
        context.backbone.preprocessing,
        test,
        np.arange(len(test)),
        batch_size=context.config.batch_size,
        description="fine-tuned, on test" if is_main() else "",
        **context.reading,
    )
    metrics = accuracies(logits, test.labels[rows])
    learned = len(context.data.splits["train"])
    yield from with_paper(context, metrics, "finetune", context.data.published, train=learned)
    yield {"unreadable": len(test) - len(rows)}


def _keep(context: Context, found: Finetuned, folder: Path) -> None:
    """Stores backbone and classifier as one bundle, which `load` takes; the state goes."""
    origin = f"fine-tuned from {context.backbone.source}"
    found.save(folder / "weights", context.backbone.preprocessing, origin)
    if is_main():
        folder.joinpath(STATE_FILE).unlink(missing_ok=True)
