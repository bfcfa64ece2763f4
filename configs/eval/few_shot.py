"""k-NN and linear classifiers with 1 to 16 shots of each class.

Command:   python -m dinov2_jax.main --config=configs/eval/few_shot.py
           --config.checkpoint=runs/quickstart
Hardware:  any; features as for k-NN
Time:      quick start's drawings: half a minute on 2 CPU cores
Expected:  top-1 by the number of shots, means over 5 tries; k and head are chosen on val/, or on
           test, which the table then says
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("few_shot",)
    return config
