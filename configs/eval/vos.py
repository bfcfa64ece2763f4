"""Video object segmentation on DAVIS 2017: first masks are propagated by patches, as in DINO.

Command:   python -m dinov2_jax.main --config=configs/eval/vos.py
           --config.checkpoint=dinov2_vits14 --config.data.path=/DAVIS --workdir=evals/vits14_davis
Hardware:  any; a frame has 2,074 patches of 14 px, and the memory of 8 frames takes 25 MB for S
Time:      val has 30 videos, 1,999 frames; one forward pass a frame
Expected:  j, f and j_and_f with recall and decay, masks as PNG in the layout of DAVIS's own tools.
           The paper has no figure for them.
Resume:    the same command; finished videos are not tracked again
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("vos",)
    config.data.set = "davis2017"
    return config
