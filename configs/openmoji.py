"""The quick start, three times as wide and with 2,500 steps: the long run for a laptop.

Command:   python -m dinov2_jax.main --config=configs/openmoji.py --workdir=runs/openmoji
Hardware:  1 CPU core of an AMD EPYC (2 GB of memory)
Time:      35 min for 2,500 steps, on a machine whose other core was busy
Expected:  63.8 % k-NN of each of the 1,865 drawings among all others, other versions of the same
           emoji left out (+-1 point; raw 16 x 16 pixels 55.7 %, centred 61.7 %); four fifths of
           them it was pretrained on, without labels. On the 392 held-out drawings (+-2.5; pixels
           55.4 and 62.0 %), every 250 steps from step 0, seed 0:
           54.3, 58.7, 62.5, 62.2, 62.0, 62.0, 61.5, 60.2, 61.0, 60.5, 60.5
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    config = quickstart.get_config()
    config.total_steps = 2500
    config.model.dim = 192
    config.model.heads = 6
    config.model.drop_path_rate = 0.2
    config.eval.every_steps = 250
    config.checkpoint.every_steps = 250
    return config
