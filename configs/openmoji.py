"""The quick start, four times as long.

Command:   python -m dinov2_jax.main --config=configs/openmoji.py --workdir=runs/openmoji
Hardware:  2 CPU cores, 4 GB of memory
Time:      not measured yet; the quick start takes 0.35 s a step
Expected:  not measured yet
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart.get_config()
    config.total_steps = 6000
    config.eval.every_steps = 300
    config.checkpoint.every_steps = 300
    return config
