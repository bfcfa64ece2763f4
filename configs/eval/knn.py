"""Weighted k-NN on frozen features, as in the reference's eval/knn.py.

Command:   python -m dinov2_jax.main --config=configs/eval/knn.py
           --config.checkpoint=runs/quickstart
Hardware:  any; on a CPU a small model reads some hundred pictures a second
Time:      quick start: under a minute on 2 CPU cores
Expected:  top-1, top-5 and mean per class for each k; <run>/eval/<step>/<data>/results.json
Own data:  --config.data.source=folder --config.data.path=/labelled --config.data.labels=folders
           with train/<class>/ and test/<class>/ in it
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("knn",)
    return config
