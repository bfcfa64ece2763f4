"""Curation to try out: the drawings of the quick start, balanced by clusters, in a minute or two.

Command:   python -m dinov2_jax.main --config=configs/curate/tiny.py --workdir=runs/tiny
Hardware:  2 CPU cores; pip install "dinov2_jax[curation,samples]"
Time:      one to two minutes, plus the first drawing of the pictures
Expected:  manifest/ with 1,000 drawings, report/report.html
"""

import ml_collections

from configs.curate import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "openmoji"
    config.curate.stages = ("cluster", "manifest", "report")
    config.curate.kmeans.sizes = (50, 8)
    config.curate.target = 1000
    return config
