"""Instance retrieval by cosine similarity: R-Oxford, R-Paris, Met, AmsterTime.

Command:   python -m dinov2_jax.main --config=configs/eval/retrieval.py
           --config.checkpoint=dinov2_vits14 --config.retrieval.set=roxford5k
           --config.retrieval.path=/roxford5k --workdir=evals/vits14_oxford
Hardware:  any; features as for k-NN, then one sort a query
Time:      one pass of features over database and queries
Expected:  mAP Medium and Hard (Met: GAP, GAP- and ACC) with the paper's figure beside it
"""

import ml_collections

from configs.eval import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.protocols = ("retrieval",)
    return config
