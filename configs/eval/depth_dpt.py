"""Depth by a DPT head on frozen patches of four blocks.

Command:   python -m dinov2_jax.main --config=configs/eval/depth_dpt.py
           --config.checkpoint=dinov2_vits14 --config.data.set=nyu --config.data.path=/nyu
           --config.data.workers=16 --workdir=evals/vits14_depth
Hardware:  a GPU; 38,400 iterations of 16 pictures of 416 x 544 px; the same command continues
           after a kill
Time:      not measured
Expected:  not measured; the paper's RMSE on NYU is 0.356 m for S and 0.279 m for g, on KITTI 2.34 m
           and 2.11 m. The head is <workdir>/depth_dpt/<data>/head.safetensors
No training: --config.head=dinov2_vits14_nyu_dpt_head.pth judges that head as it is, on NYU or,
           with --config.data.set=sunrgbd, on SUN RGB-D
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("depth_dpt",)
    return config
