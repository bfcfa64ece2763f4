"""Fine-tuning of LoRA factors and a linear head: the light alternative, on one GPU.

Command:   python -m dinov2_jax.main --config=configs/eval/lora.py
           --config.checkpoint=dinov2_vits14 --config.data.path=/labelled --workdir=evals/mine_lora
Hardware:  one GPU; small models and sets on a CPU
Time:      not measured; 2,000 iterations of 64 pictures
Expected:  top-1 on test/; the merged weights in <workdir>/finetune/<data>/weights, a bundle
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("finetune",)
    config.finetune.lora_rank = 8
    # LoRA factors start at 0 and need a far larger rate than released weights.
    config.finetune.lr = 1e-3
    config.finetune.iterations = 2000
    config.finetune.warmup_iterations = 200
    config.finetune.batch_size = 64
    config.finetune.drop_path = 0.0
    config.finetune.mixup = 0.0
    config.finetune.cutmix = 0.0
    config.finetune.ema = 0.999
    return config
