"""Segmentation on the last four blocks, judged at several scales and mirrored ("+ms").

Command:   python -m dinov2_jax.main --config=configs/eval/segmentation_ms.py
           --config.checkpoint=dinov2_vits14 --config.data.set=ade20k --config.data.path=/ade20k
           --config.data.workers=16 --workdir=evals/vits14_ade20k
Hardware:  a GPU; 40,000 iterations of 16 crops of 640 px; the test looks at ten views of a picture,
           up to three times as large
Time:      not measured
Expected:  not measured; the paper's mIoU on ADE20K is 47.2 for S and 53.0 for g. The head is
           <workdir>/segmentation_ms/<data>/head.safetensors
No training: --config.head=dinov2_vits14_ade20k_ms judges that head as it is
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("segmentation_ms",)
    return config
