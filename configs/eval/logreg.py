"""Logistic regression on cls features: the protocol of the paper's twelve transfer sets.

Command:   python -m dinov2_jax.main --config=configs/eval/logreg.py
           --config.checkpoint=dinov2_vits14 --config.data.set=food101 --config.data.path=/food101
           --workdir=evals/vits14_food101
Hardware:  any; features as for k-NN, then the solver on the same devices
Time:      quick start's 1,473 drawings, 45 values of C: 10 s on 2 CPU cores
Expected:  the metric in which the set is usually reported, with the paper's figure beside it
           (food101: S 89.1, B 92.8, L 94.3, g 94.7); accuracy by C in results.html
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("logreg",)
    return config
