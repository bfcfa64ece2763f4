"""Video classification: a linear probe on the features of eight frames.

Command:   python -m dinov2_jax.main --config=configs/eval/video.py
           --config.checkpoint=dinov2_vits14 --config.video.set=ucf101 --config.video.path=/ucf101
           --workdir=evals/vits14_ucf101
Hardware:  any; needs pip install -e ".[video]"
Time:      one pass of features over eight frames a video, each video decoded once
Expected:  top-1 with the paper's figure beside it (UCF-101: S 87.0, B 89.1, L 90.5, g 91.2)
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("video",)
    return config
