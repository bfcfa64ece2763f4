"""Copies of a messy folder found and left out: what remains is listed to train on.

Command:   python -m dinov2_jax.main --config=configs/curate/dedup.py --workdir=runs/pool
           --config.data.path=/pictures
           With features, which find more edits: --config.weights=<what load takes>
Hardware:  any; nothing is downloaded
Time:      some 100 photographs a second and core to read them once; the rest is short
Expected:  dedup/ (row, component, kept), manifest/kept.txt, report/report.html with pairs
Then:      python -m dinov2_jax.main --config=configs/folder_single_gpu.py --workdir=runs/first
           --config.data.source=manifest --config.data.path=runs/pool/manifest
"""

import ml_collections

from configs.curate import default


def get_config() -> ml_collections.ConfigDict:
    return default.get_config()
