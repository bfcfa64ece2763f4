"""ViT-S/14 from scratch on ImageNet-1k, for one machine with 8 GPUs.

Command:   python -m dinov2_jax.main --config=configs/vits14.py --workdir=runs/vits14
           with --config.data.path=imagenet2012@/data/tfds
Hardware:  8 GPUs with 40 GB or more, 128 images each
Time:      not measured yet
Expected:  not measured yet; the reference has no such run (its ViT-S is distilled from ViT-g)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    # base_lr is the learning rate of a batch of 1024, as here.
    config.batch_size = 1024
    config.group_size = 64

    config.model.variant = "vit_small"
    config.model.patch_size = 14
    # A small network needs its whole capacity; the reference's 0.3 and 0.4 are for L and g.
    config.model.drop_path_rate = 0.1
    config.crops.local_size = 98

    # As in the reference's patch-14 recipes: no running centre has to settle.
    config.centering = "sinkhorn_knopp"
    config.optimizer.base_lr = 2e-3
    return config
