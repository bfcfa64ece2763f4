"""Fine-tuning end to end with a linear head: DeiT III's recipe, as in the paper's table 5.

Command:   python -m dinov2_jax.main --config=configs/eval/finetune.py
           --config.checkpoint=dinov2_vitb14 --config.data.set=imagenet --config.data.path=/imagenet
           --config.data.workers=16 --config.compute_dtype=bfloat16 --workdir=evals/vitb14_finetune
Hardware:  8 GPUs for ViT-B; higher resolution by --config.image_size=448 --config.resize_size=512
Time:      not measured; 50,000 iterations of 512 pictures; the same command continues after a kill
Expected:  not measured; the paper's g reaches 88.5 at 224 px. The result is the bundle
           <workdir>/finetune/<data>/weights, with its classifier, which every other task loads
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("finetune",)
    return config
