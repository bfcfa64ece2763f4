"""ViT-B/14 from scratch on ImageNet-1k, for one machine with 8 GPUs.

Command:   python -m dinov2_jax.main --config=configs/vitb14.py --workdir=runs/vitb14
           with --config.data.path=imagenet2012@/data/tfds
Hardware:  8 GPUs with 80 GB, 128 images each
Time:      not measured yet
Expected:  not measured yet; the reference has no such run (its ViT-B is distilled from ViT-g)
"""

import ml_collections

from configs import vits14


def get_config() -> ml_collections.ConfigDict:
    config = vits14.get_config()
    config.model.variant = "vit_base"
    config.model.drop_path_rate = 0.2
    return config
