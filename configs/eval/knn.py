"""k-NN on frozen features, with the reference's protocol (eval/knn.py there).

Command:   python -m dinov2_jax.main --config=configs/eval/knn.py
           --config.checkpoint=runs/quickstart
Hardware:  any; on a CPU a small model reads some hundred pictures a second
Time:      quick start: under a minute on 2 CPU cores
Expected:  a table of top-1, and top-5 for each k in <run>/eval/<step>/results.json
Own data:  --config.data.source=folder --config.data.path=/labelled --config.data.labels=folders
           --config.data.test_split=test; the model's shape always comes from the weights
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("knn",)
    return config
