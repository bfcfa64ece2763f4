"""What distillation is worth on small photographs: a small student, alone and with a teacher.

Command:   python -m dinov2_jax.main --config=configs/recipes/distil_photos.py
           --workdir=runs/distil_photos --config.data.path=/pictures --config.seed=0
           the pictures are a folder with train/<class>/ and test/<class>/
Hardware:  1 CPU core, 2 GB of memory
Time:      11 to 28 min on a core of an AMD EPYC that had much other work
Expected:  CIFAR-10, mean of three seeds, k-NN: 50.9 % (teacher), 47.2 (alone), 47.1 (distilled),
           49.4 (features), 47.7 (alone_longer); docs/distill.md tells what follows
Resume:    the same command

The teacher is configs/small_photos.py; the students have a third of its width. `alone`, `distilled`
and `features` take the same steps. `alone_longer` takes as many as cost as many FLOPs as the
distillation, whose step has a pass of the larger teacher.
"""

import ml_collections

from configs.recipes import default

SMALL = {"model.dim": 64, "model.heads": 4}
# The stages' evaluations tell more than k-NN while training, which would cost half of the time.
QUIET = {"eval.every_steps": 0}
JUDGED = ("knn", "linear_cached")


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.evaluation.update(default.nested(EVALUATION))
    config.stages = stages = ml_collections.ConfigDict(sort_keys=False)
    stages.teacher = _stage({})
    stages.alone = _stage(SMALL)
    stages.distilled = _stage(SMALL, teacher="teacher")
    stages.features = _stage(SMALL | {"distill.kind": "features"}, teacher="teacher")
    stages.alone_longer = _stage(SMALL | {"total_steps": 1125})
    return config


def _stage(settings: dict[str, object], teacher: str = "") -> ml_collections.ConfigDict:
    return default.stage("small_photos", settings | QUIET, teacher=teacher, evaluate=JUDGED)


EVALUATION = {
    "knn.ks": (20,),
    "linear.blocks": (1,),
    "linear.avgpool": (False,),
    "linear.iterations": 1000,
    "linear.batch_size": 256,
    "linear.save_every": 1000,
}
