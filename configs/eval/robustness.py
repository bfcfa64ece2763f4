"""The linear classifier of ImageNet on its variants: V2, ReaL, A, R, Sketch, C.

Command:   python -m dinov2_jax.main --config=configs/eval/robustness.py
           --config.checkpoint=dinov2_vits14 --config.data.set=imagenet --config.data.path=/imagenet
           --config.robustness.imagenet_v2=/imagenetv2-matched-frequency-format-val
           --workdir=evals/vits14_linear
Hardware:  as linear_cached.py, which runs first unless its result is finished; with
           --config.head=<file> that classifier is judged and nothing is trained
Time:      one pass of features over each variant; ImageNet-C has 75 times 50,000 pictures
Expected:  a result for each variant with a path; the paper's figure beside it if the head was
           trained by linear.py with the default settings
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("linear_cached", "robustness")
    return config
