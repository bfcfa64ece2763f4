"""k-NN evaluation of any checkpoint of a run, with the reference's protocol (eval/knn.py there).

Command:   python -m dinov2_jax.main --config=configs/eval/knn.py
           --config.checkpoint=runs/quickstart
Hardware:  any; on a CPU a small model reads some hundred pictures a second
Time:      quick start: under a minute on 2 CPU cores
Expected:  a table of top-1 and top-5 for each k, and knn.json in the run's directory
Own data:  --config.data.source=folder --config.data.path=/labelled --config.data.labels=folders
           --config.data.test_split=test; the model's shape always comes from the checkpoint
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "knn"
    config.checkpoint = ""  # a run directory (newest step), its checkpoints, or one step
    config.which = "teacher"  # teacher | student
    config.ks = (10, 20, 100, 200)  # neighbours that vote. Reference
    config.temperature = 0.07  # of the vote. Reference
    config.n_per_class = (-1,)  # examples of each class in the bank; -1: all. Reference
    config.n_tries = 1  # random draws to average for each n_per_class > 0. Reference
    config.batch_size = 256  # images a forward pass. Reference
    config.resize_size = 0  # px of the shorter side; 0: as during the run
    config.image_size = 0  # px of the centre crop; 0: as during the run

    # Empty: as during the run.
    config.data = ml_collections.ConfigDict()
    config.data.source = ""  # folder | array_record | tfds | openmoji
    config.data.path = ""
    config.data.train_split = ""  # the labelled bank
    config.data.test_split = ""  # what it is asked
    config.data.labels = ""  # auto | folders | none
    config.data.cache_dir = ""
    config.data.workers = 0  # loader processes; 0: in the main process
    config.distributed = default.distributed()  # all processes do the same, process 0 writes
    return config
