"""Logistic regression on each of the twelve transfer sets of the paper (table 8).

Command:   python -m dinov2_jax.main --config=configs/eval/transfer.py
           --config.checkpoint=dinov2_vits14 --config.transfer.path=/sets
           --workdir=evals/vits14_transfer
Hardware:  any; features as for k-NN, then the solver on the same devices
Time:      one pass of features over each set; 45 values of C a set
Expected:  a result for each of /sets/food101, /sets/cifar10, ..., written as soon as it is known;
           with all twelve their average (S 87.7, B 90.1, L 91.2, g 92.1)
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("transfer",)
    return config
