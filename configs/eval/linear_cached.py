"""Linear probe on stored features, without augmentation: 52 classifiers in minutes.

Command:   python -m dinov2_jax.main --config=configs/eval/linear_cached.py
           --config.checkpoint=runs/quickstart --config.linear.iterations=2500
           --config.linear.batch_size=256
Hardware:  any; one pass of features, then no picture is read again
Time:      quick start's drawings with the numbers above: 15 s on 2 CPU cores
Expected:  top-1, some tenths below that of linear.py because nothing is augmented; accuracy by
           learning rate and input in results.html
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("linear_cached",)
    return config
