"""End-to-end fine-tuning of a backbone with a linear head.

The paper (section 7.1, Table 5) takes the pipeline of DeiT III (Touvron et al. 2022, arXiv
2204.07118) and its hyper-parameters; the defaults here are those of its README_revenge.md for
ViT-B, -L and -H at 224 px. With `FinetuneSettings.lora` only low-rank factors and the head are
trained.
"""

# DINOv2: no RandAugment, which DeiT III's fine-tuning has beside crop, flip, mixup and CutMix.
# Layerwise decay is not part of that recipe and off by default.

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, NamedSharding, P
from jax.sharding import Mesh

from dinov2_jax.data.decode import MAX_PIXELS
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.finetune.classifier import Finetuned, logits_of
from dinov2_jax.heads.finetune.lora import init_factors, merge
from dinov2_jax.heads.finetune.mixing import mix, smooth_targets
from dinov2_jax.heads.finetune.optimizer import FinetuneSettings, check_settings, layerwise_adamw
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.heads.probe_data import check_labels, checksum, labelled_batches, state_file
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ops.seeds import seed_key
from dinov2_jax.parallel.constraints import constrain_batch
from dinov2_jax.parallel.mesh import make_mesh, state_shardings
from dinov2_jax.run.resume import run_steps, to_host
from dinov2_jax.weights.adapt import with_image_size

STATE_FILE = "finetune_state.safetensors"


def at_resolution(
    model: VisionTransformer, params: Any, image_px: int
) -> tuple[VisionTransformer, Any]:
    """Gives the model a position table for `image_px`, resampled as its forward pass does.

    Raises EvaluationError when that is not whole patches.
    """
    patch = model.patch_size
    if image_px % patch or image_px < patch:
        raise EvaluationError(
            f"{image_px} px are not whole patches of {patch} px; nearest valid: "
            f"{max(1, round(image_px / patch)) * patch}"
        )
    larger = model.clone(image_size=image_px)
    if larger.table_grid() == model.table_grid():
        return larger, params
    return larger, with_image_size(params, model, image_px)


# --------------------------------------------------------------------------------------- the step
def _backbone(settings: FinetuneSettings, params: Any, frozen: Any) -> Any:
    if settings.lora is None:
        return params["backbone"]
    return merge(frozen, params["lora"], settings.lora)


def _loss(
    params: Any,
    frozen: Any,
    model: VisionTransformer,
    settings: FinetuneSettings,
    images: Array,
    targets: Array,
    keys: Array,
) -> Array:
    """Mean cross-entropy of images [G, b, H, W, C] with soft targets [G, b, K]."""
    backbone = _backbone(settings, params, frozen)
    drop_keys = keys if settings.drop_path else None
    sets: Any = model.apply({"params": backbone}, [images], drop_path_keys=drop_keys)
    logits = logits_of(params["head"], sets[0], settings.avgpool)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _train_step(
    model: VisionTransformer,
    settings: FinetuneSettings,
    preprocessing: Preprocessing,
    optimizer: optax.GradientTransformation,
    state: dict[str, Any],
    frozen: Any,
    batch: dict[str, Array],
    iteration: Array,
) -> tuple[dict[str, Any], Array]:
    """One step: the new {"params", "ema", "optimizer"} and the loss."""
    groups = settings.batch_size // settings.group_size
    classes = state["params"]["head"]["bias"].shape[0]
    key = jax.random.fold_in(seed_key(settings.seed), iteration)
    mix_keys, drop_keys = (jax.random.split(k, groups) for k in jax.random.split(key))
    images = normalize(batch["images"], preprocessing.mean, preprocessing.std)
    images = constrain_batch(images.reshape(groups, -1, *images.shape[1:]))
    targets = smooth_targets(batch["labels"].reshape(groups, -1), classes, settings.smoothing)
    images, targets = mix(mix_keys, images, targets, mixup=settings.mixup, cutmix=settings.cutmix)
    given = frozen, model, settings, images, targets, drop_keys
    loss, gradient = jax.value_and_grad(_loss)(state["params"], *given)
    updates, moments = optimizer.update(gradient, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    decay = jnp.minimum(settings.ema, (1.0 + iteration) / (10.0 + iteration))
    ema = optax.incremental_update(params, state["ema"], 1 - decay)
    return {"params": params, "ema": ema, "optimizer": moments}, loss


def first_params(
    model: VisionTransformer,
    params: Any,
    classes: int,
    settings: FinetuneSettings,
    head: LinearHead | None = None,
) -> dict[str, Any]:
    """Makes the parameters that training begins with: backbone or LoRA's factors, and head.

    `head` is a linear head to begin with; None draws one from N(0, 0.01^2). Raises EvaluationError
    when it has another input or other classes.
    """
    width = model.dim * (1 + settings.avgpool)
    rng = np.random.default_rng(settings.seed)
    kernel = 0.01 * rng.standard_normal((width, classes), np.float32)
    bias = np.zeros(classes, np.float32)
    if head is not None:
        kernel, bias = np.ascontiguousarray(head.weight.T), head.bias
        if (head.blocks, head.avgpool) != (1, settings.avgpool) or kernel.shape != (width, classes):
            raise EvaluationError(
                f"the linear head {head.name} of {kernel.shape[1]} classes does not fit: it must "
                f"read 1 block with avgpool={settings.avgpool} and have {classes} classes; train "
                f"one with --config.linear.blocks=(1,) --config.linear.avgpool="
                f"({settings.avgpool},), or begin without one"
            )
    found: dict[str, Any] = {"head": {"kernel": kernel, "bias": bias}}
    if settings.lora is None:
        return {"backbone": params, **found}
    return {"lora": init_factors(params, settings.lora, settings.seed), **found}


def finetune(
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    source: Source,
    labels: np.ndarray,
    classes: int,
    settings: FinetuneSettings,
    *,
    head: LinearHead | None = None,
    class_names: Sequence[str] = (),
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    folder: Path | None = None,
    identity: str = "",
    mesh: Mesh | None = None,
) -> Finetuned:
    """Trains on random resized crops of `preprocessing.image_px` px.

    Args:
      model, params: the backbone; its position table is resampled to that size first.
      head: see `first_params`.
      class_names: kept with the classifier.
      source, labels, workers, identity: as in `probe_images.train_images`.
      folder, mesh: as in `probe.train_cached`.

    Returns:
      The averaged weights, the same on all processes.

    Raises:
      EvaluationError: labels, sizes or a head that do not fit, or a stored state of other work.
    """
    check_labels(source, labels, classes)
    check_settings(settings)
    mesh = mesh or make_mesh()
    model, params = at_resolution(model, params, preprocessing.image_px)
    trained = first_params(model, params, classes, settings, head)
    optimizer = layerwise_adamw(trained, model.depth, settings)
    about = {"classes": classes, "identity": identity, "size": preprocessing.image_px}
    about["head"] = "" if head is None else f"{head.name} {checksum([head.weight, head.bias])}"
    file = state_file(folder, STATE_FILE, settings, labels, about)
    begun = {"params": trained, "ema": trained, "optimizer": optimizer.init(trained)}
    state, start = file.load(begun)
    placed = state_shardings(begun, mesh)
    state = jax.tree.map(functools.partial(jax.device_put, may_alias=False), state, placed)
    frozen = None
    if settings.lora is not None:
        frozen = jax.device_put(params, state_shardings(params, mesh))
    deep = model.clone(drop_path_rate=settings.drop_path, drop_path_uniform=True)
    step = jax.jit(
        functools.partial(_train_step, deep, settings, preprocessing, optimizer),
        donate_argnums=0,
        out_shardings=(placed, NamedSharding(mesh, P())),
    )
    feed = labelled_batches(
        source, labels, preprocessing, settings, mesh, workers, max_pixels, start
    )
    with jax.set_mesh(mesh), feed as batches:
        state = run_steps(
            lambda state, now: step(state, frozen, next(batches), np.int32(now.start)),
            state,
            range(start, settings.iterations),
            file,
            settings.save_every,
        )
        backbone = jax.jit(functools.partial(_backbone, settings))(state["ema"], frozen)
    values = jax.tree.map(to_host, state["ema"]["head"])
    classifier = LinearHead(
        np.ascontiguousarray(values["kernel"].T),
        values["bias"],
        blocks=1,
        avgpool=settings.avgpool,
        class_names=tuple(class_names),
        identity=identity,
        metadata={"name": "fine-tuned"},
    )
    return Finetuned(model, jax.tree.map(to_host, backbone), classifier)
