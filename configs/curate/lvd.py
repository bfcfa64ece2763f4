"""The paper's recipe: copies and evaluation pictures leave the pool, queries retrieve from it.

Command:   python -m dinov2_jax.main --config=configs/curate/lvd.py --workdir=runs/lvd
           --config.data.path=/pool --config.weights=dinov2_vitl14
           --config.curate.references=imagenet:/imagenet/val,cub:/cub/test
           --config.curate.queries=imagenet:/imagenet/train,cub:/cub/train
Hardware:  a GPU or TPU for the features of more than some thousand pictures
Time:      --config.curate.dry_run=True estimates it by stage
Expected:  stages dedup, exclude, cluster, retrieve, sample; the report shows queries and neighbours
Origin:    arXiv 2304.07193, section 3 and appendix A.4: k = 4 or 32 neighbours a query, or clusters
           with more than 3 queries, 10,000 pictures each, at most 1,000,000 a set
"""

import ml_collections

from configs.curate import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.curate.stages = ("exclude", "retrieve", "manifest", "report")
    config.curate.kmeans.resample = False
    return config
