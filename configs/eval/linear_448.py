"""Linear probe on augmented pictures of 448 px: the paper's larger size (table 5).

Command:   python -m dinov2_jax.main --config=configs/eval/linear_448.py
           --config.checkpoint=dinov2_vitg14 --config.data.set=imagenet
           --config.data.path=/imagenet --config.data.workers=16 --workdir=evals/vitg14_448
Hardware:  a GPU; four times the work of configs/eval/linear.py
Time:      not measured on a GPU yet
Expected:  top-1 on ImageNet's validation set near the paper's (g 86.7; 86.5 at 224 px)
Resume:    the same command
"""

import ml_collections

from configs.eval import linear


def get_config() -> ml_collections.ConfigDict:
    config = linear.get_config()
    # The paper does not say how it resized; this is the ratio of 256 to 224.
    config.resize_size = 512
    config.image_size = 448
    return config
