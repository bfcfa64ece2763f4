"""Linear probe on augmented pictures: 52 classifiers, the reference's eval/linear.py.

Command:   python -m dinov2_jax.main --config=configs/eval/linear.py
           --config.checkpoint=dinov2_vits14 --config.data.set=imagenet --config.data.path=/imagenet
           --config.data.workers=16 --workdir=evals/vits14_linear
Hardware:  a GPU: 12,500 iterations of 1,024 pictures; the same command continues after a kill
Time:      not measured on a GPU yet; configs/eval/linear_cached.py takes minutes instead
Expected:  top-1 on ImageNet's validation set near the paper's (S 81.1, B 84.5, L 86.3, g 86.5);
           the chosen head in <workdir>/linear/<data>/head.safetensors, for robustness.py
No training: --config.head=dinov2_vits14_linear_head.pth judges that classifier as it is
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("linear",)
    return config
