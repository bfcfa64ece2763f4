"""Segmentation by frozen patches: k-NN and logistic regression, as in CAPI.

Command:   python -m dinov2_jax.main --config=configs/eval/knn_segmentation.py
           --config.checkpoint=dinov2_vits14 --config.data.set=voc2012 --config.data.path=/VOC2012
           --workdir=evals/vits14_voc2012
Hardware:  any; 2,000,000 patches of S (384 features) take 9 GB while k is chosen, B twice as much
Time:      a pass over all pictures at 224 px, and a search for every test patch
Expected:  miou, aacc, macc and the IoU of each class, of k-NN and of logistic regression
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("knn_segmentation",)
    return config
