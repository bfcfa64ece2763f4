"""The high-resolution stage: adapts a run to larger pictures in a few thousand steps.

Command:   python -m dinov2_jax.main --config=configs/highres.py:vitl14 --workdir=runs/vitl14_518
           --config.init_from=runs/vitl14
           The text behind the colon is the recipe of the first run, by name or as the path of a
           .py file; without it, vitl14. --config.init_from is the run itself.
Hardware:  as the recipe
Time:      a picture has 3.5 times as many tokens as in the recipe; not measured for large models
Expected:  the paper's ablation (ViT-L/16, ImageNet-1k): close to a model that trained at the high
           resolution throughout; not measured here for large models
Small:     --config=configs/highres.py:quickstart --config.init_from=runs/quickstart, on 2 cores

Differences from the recipe. "Paper" is its section 4, "Adapting the resolution"; where it gives no
value, the choice is ours and was made by reasoning.
- Global crops have 37 patches where the recipe has 16 (rounded down): 224 px become 518 px with
  patches of 14 px, and 512 px with patches of 16 px. Paper: 518 px.
- Local crops keep their size in pixels. The paper does not give it. DINOv3's high-resolution stage
  mostly pairs 512 px with the 112 px of its first stage.
- 10,000 steps (paper), but no more than a fifth of the recipe's. Warm-ups and the freezing of the
  last layer shrink with the steps, and the other schedules follow config.total_steps (paper: all
  schedules are compressed to fit).
- The base learning rate is a tenth. The paper says lower, without a value. Weights at the end of a
  schedule have settled at a small rate; the full one would undo that.
- Student, teacher, heads and loss centres go on; Adam's moments are fresh. So nothing is frozen for
  the sake of new heads.
- The batch stays, as learning rate and Sinkhorn-Knopp depend on it. A group of many tokens is split
  so that micro-batches hold about as many tokens at a time as the recipe's step does.
- Evaluation at the new size. It and checkpoints come every tenth of the stage.
"""

import ml_collections

from configs import default
from dinov2_jax.config.files import ConfigError, load_config

MOST_STEPS = 10_000
# Larger groups of images fill a device: they are split.
MANY_TOKENS = 2**14


def get_config(base: str = "vitl14") -> ml_collections.ConfigDict:
    config = default.get_config()
    recipe = load_config(base)
    if recipe.task != "train":
        raise ConfigError(
            f"configs/highres.py:{base} needs a recipe that trains, but {base} is of task "
            f"{recipe.task!r}; use for example --config=configs/highres.py:vitl14"
        )
    config.update(recipe)
    config.init_from = ""  # the run is named on the command line
    config.init_state = "both"
    set_sizes(config)
    set_micro_batches(config, recipe)
    set_steps(config)
    config.optimizer.base_lr = recipe.optimizer.base_lr / 10
    config.optimizer.freeze_backbone_steps = 0  # the heads are those of the run
    return config


def set_sizes(config: ml_collections.ConfigDict) -> None:
    """Larger global crops and pictures of evaluations; local crops stay."""
    patch, sizes = config.model.patch_size, config.eval
    config.crops.global_size = enlarged(config.crops.global_size, patch)
    before = sizes.image_size
    sizes.image_size = enlarged(before, patch)
    sizes.resize_size = round(sizes.resize_size * sizes.image_size / before)


def enlarged(size: int, patch: int) -> int:
    """Pixels of a side with 37 patches for every 16."""
    return max(size, size // patch * 37 // 16 * patch)


def set_micro_batches(config: ml_collections.ConfigDict, recipe: ml_collections.ConfigDict) -> None:
    """Splits groups and steps, so that the batch can stay where memory is short."""
    group = config.group_size
    if group * tokens(config) < MANY_TOKENS:
        return
    # KoLeo takes nearest neighbours in a group: 4 images are few already.
    needed = -(-tokens(config) // tokens(recipe))
    parts = max(n for n in range(1, needed + 1) if group % n == 0 and (n == 1 or group // n >= 4))
    config.group_size = group // parts
    config.micro_batches *= parts


def tokens(config: ml_collections.ConfigDict) -> int:
    """Tokens of the crops of one picture, which is what memory grows with."""
    crops, patch = config.crops, config.model.patch_size
    return 2 * (crops.global_size // patch) ** 2 + crops.local_number * (
        (crops.local_size // patch) ** 2
    )


def set_steps(config: ml_collections.ConfigDict) -> None:
    """A short run whose schedules are those of the recipe, compressed."""
    before, optimizer, teacher = config.total_steps, config.optimizer, config.teacher
    config.total_steps = steps = min(MOST_STEPS, max(1, before // 5))
    optimizer.warmup_steps = optimizer.warmup_steps * steps // before
    optimizer.freeze_last_layer_steps = optimizer.freeze_last_layer_steps * steps // before
    teacher.temp_warmup_steps = teacher.temp_warmup_steps * steps // before
    if config.eval.every_steps:
        config.eval.every_steps = max(1, steps // 10)
    config.checkpoint.every_steps = max(1, steps // 10)
    if config.checkpoint.keep_every_steps:
        config.checkpoint.keep_every_steps = max(1, steps // 2)
