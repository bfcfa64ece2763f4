"""What an evaluation accepts: the names and ranges of the fields of configs/eval/."""

from dinov2_jax.config.checks import (
    BATCH,
    COUNT,
    COUNT_OR_NONE,
    DECAY,
    DISTRIBUTED,
    PROCESSES,
    RATE,
    SEED,
    SHARE,
    SIDE,
    TEMPERATURE,
    Range,
    Rules,
)
from dinov2_jax.data.sources.open import KINDS, LABELS
from dinov2_jax.datasets.large import LARGE_SETS
from dinov2_jax.datasets.transfer import TRANSFER_SETS
from dinov2_jax.heads.grid import RATES
from dinov2_jax.weights.load import RULES as READING

_SIDE = Range(0, SIDE.high)  # px; 0: as the weights say
# "" stands for what the evaluated run was trained with, or for none.
RULES: Rules = DISTRIBUTED | {
    **READING,
    "batch_size": BATCH,
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "resize_size": _SIDE,
    "image_size": _SIDE,
    "data.set": ("", "imagenet", "imagenet_tfds", *LARGE_SETS, *TRANSFER_SETS),
    "data.source": ("", *KINDS),
    "data.labels": ("", *LABELS),
    "data.workers": PROCESSES,
    "data.max_pixels": COUNT,
    "data.max_bad": COUNT_OR_NONE,
    "knn.ks": COUNT,
    "knn.temperature": TEMPERATURE,
    "few_shot.per_class": COUNT,
    "few_shot.tries": Range(1, 10_000),
    "few_shot.linear_iterations": COUNT,
    "logreg.log10_c": Range(-300, 300, ordered=True),
    "logreg.count": Range(1, 10_000),
    "logreg.max_iterations": COUNT,
    "linear.rates": tuple(RATES),
    "linear.blocks": Range(1, 1024),
    "linear.iterations": COUNT,
    "linear.batch_size": BATCH,
    "linear.seed": SEED,
    "linear.save_every": COUNT,
    "finetune.iterations": COUNT,
    "finetune.batch_size": BATCH,
    "finetune.group_size": BATCH,
    "finetune.lr": RATE,
    "finetune.min_lr": RATE,
    "finetune.warmup_iterations": COUNT_OR_NONE,
    "finetune.layerwise_decay": Range(1e-3, 1),
    "finetune.weight_decay": DECAY,
    "finetune.drop_path": Range(0, 0.99),
    "finetune.smoothing": Range(0, 0.99),
    "finetune.mixup": Range(0, 100),
    "finetune.cutmix": Range(0, 100),
    "finetune.ema": SHARE,
    "finetune.lora_rank": Range(0, 2**16),
    "finetune.lora_alpha": Range(1e-6, 1e6),
    "finetune.seed": SEED,
    "finetune.save_every": COUNT,
    "retrieval.set": ("", "roxford5k", "rparis6k", "met", "mini_met", "amstertime"),
    "retrieval.scales": Range(0.01, 100),
    "retrieval.faiss_recall": SHARE,
    "video.set": ("", "ucf101", "ucf101_2", "ucf101_3", "kinetics400", "ssv2"),
}
