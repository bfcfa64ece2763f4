"""A balanced set of a given size: k-means of several levels, the same share of every cluster.

Command:   python -m dinov2_jax.main --config=configs/curate/hierarchy.py --workdir=runs/balanced
           --config.data.path=/pool --config.weights=dinov2_vitl14 --config.curate.target=1000000
Hardware:  a GPU or TPU for the features of more than some thousand pictures
Time:      --config.curate.dry_run=True estimates it by stage
Expected:  cluster/ with centroids and parents of each level, manifest/ with `target` pictures
Origin:    Vo et al. 2024, arXiv 2405.15613, section 3; sizes for about a million pictures
"""

import ml_collections

from configs.curate import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.curate.stages = ("cluster", "manifest", "report")
    config.curate.kmeans.sizes = (10_000, 1_000, 100)
    return config
