"""Segmentation by a linear head on frozen patches: batch norm and a 1x1 convolution ("linear").

Command:   python -m dinov2_jax.main --config=configs/eval/segmentation.py
           --config.checkpoint=dinov2_vits14 --config.data.set=ade20k --config.data.path=/ade20k
           --config.data.workers=16 --workdir=evals/vits14_ade20k
Hardware:  a GPU; 40,000 iterations of 16 crops of 512 px; the same command continues after a kill
Time:      not measured
Expected:  not measured; the paper's mIoU on ADE20K is 44.3 for S and 49.0 for g. The head is
           <workdir>/segmentation/<data>/head.safetensors
No training: --config.head=dinov2_vits14_ade20k_linear judges that head as it is
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("segmentation",)
    return config
