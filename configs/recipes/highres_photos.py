"""What the high-resolution stage is worth on photographs: before and after it, at the new size.

Command:   python -m dinov2_jax.main --config=configs/recipes/highres_photos.py
           --workdir=runs/highres_photos --config.data.path=/pictures --config.seed=0
           the pictures are a folder with train/<class>/ and test/<class>/
Hardware:  1 CPU core, 2 GB of memory
Time:      7 to 14 min on a core of an AMD EPYC that had much other work
Expected:  Caltech-101, mean of three seeds, k-NN at 64 px: 12.6 % before the stage, 12.6 %
           after it, 13.0 % with the old crops: at this size the stage is worth nothing
Resume:    the same command

Every stage is judged at 64 px, also those that were trained at 32 px. `same_size` is the stage with
the old crops: what more steps and a lower rate give without the larger pictures.
"""

import ml_collections

from configs.recipes import default, distil_photos

SIZE = 32  # px: 2 x 2 patches
LARGE = 64  # px: 4 x 4 patches; the rule of configs/highres.py
NETWORK = {"model.dim": 96, "model.patch_size": 16, "ibot.loss_weight": 1.0}
JUDGED = ("knn", "linear_cached")


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.evaluation.update(default.nested(distil_photos.EVALUATION))
    config.evaluation.update(default.nested({"resize_size": LARGE, "image_size": LARGE}))
    config.stages = stages = ml_collections.ConfigDict(sort_keys=False)
    stages.pretrain = default.stage(
        "small_photos", NETWORK | _crops(SIZE) | {"total_steps": 300}, evaluate=JUDGED
    )
    stages.same_size = _adapted(SIZE)
    stages.highres = _adapted(LARGE)
    return config


def _adapted(size: int) -> ml_collections.ConfigDict:
    settings = NETWORK | _crops(size) | {"total_steps": 60}
    return default.stage("highres:small_photos", settings, start="pretrain", evaluate=JUDGED)


def _crops(size: int) -> dict[str, object]:
    return {
        "crops.global_size": size,
        "eval.resize_size": size,
        "eval.image_size": size,
        "eval.every_steps": 0,
    }
