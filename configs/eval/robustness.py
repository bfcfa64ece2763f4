"""The linear classifier of ImageNet on its variants: V2, ReaL, A, R, Sketch, C.

Command:   python -m dinov2_jax.main --config=configs/eval/robustness.py
           --config.checkpoint=dinov2_vits14 --config.data.set=imagenet --config.data.path=/imagenet
           --config.robustness.imagenet_v2=/imagenetv2-matched-frequency-format-val
           --workdir=evals/vits14_linear
Hardware:  as linear_cached.py, which is run before unless the workdir has its classifier
Time:      one pass of features over each variant; ImageNet-C has 75 times 50,000 pictures
Expected:  a figure for each variant that has a path, the paper's beside it
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("linear_cached", "robustness")
    return config
