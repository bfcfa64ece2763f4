"""A whole family on the drawings: pretrain, adapt to larger crops, distil two smaller students.

Command:   python -m dinov2_jax.main --config=configs/recipes/quick.py --workdir=runs/quick
           without --workdir the plan is printed, and nothing is run
Hardware:  2 CPU cores, 4 GB of memory
Time:      13 min on 2 cores of an AMD EPYC that had other work, 17 min of CPU time
Expected:  runs/quick/stages.html: four runs side by side, each with k-NN and a linear probe on the
           392 held-out drawings; k-NN of one run: 57.9 % (pretrain), 56.6 (highres), 55.6
           (distil_64), 54.1 (distil_32)
Own pictures: add --config.data.source=folder --config.data.path=/labelled, which every stage takes
Resume:    the same command

The largest model is half again as wide as that of configs/quickstart.py. Its students are that
model, and one of half the width.
"""

import ml_collections

from configs.recipes import default

LARGE = {"model.dim": 96, "model.heads": 6}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.evaluation.update(default.nested(EVALUATION))
    config.stages = ml_collections.ConfigDict(sort_keys=False)
    judged = ("knn", "linear_cached")
    config.stages.pretrain = default.stage(
        "quickstart", LARGE | {"total_steps": 600}, evaluate=judged
    )
    # 3 x 3 patches in place of 2 x 2, where the model was trained with 32 px.
    config.stages.highres = default.stage(
        "highres:quickstart",
        LARGE
        | {
            "total_steps": 60,
            "crops.global_size": 48,
            "eval.resize_size": 48,
            "eval.image_size": 48,
            "eval.every_steps": 30,
        },
        start="pretrain",
        evaluate=judged,
    )
    config.stages.distil_64 = default.stage(
        "quickstart", {"total_steps": 400}, teacher="pretrain", evaluate=judged
    )
    config.stages.distil_32 = default.stage(
        "quickstart",
        {"model.dim": 32, "total_steps": 400},
        teacher="pretrain",
        evaluate=judged,
    )
    return config


# A few hundred drawings need few classifiers and few of their steps.
EVALUATION = {
    "knn.ks": (20,),
    "linear.blocks": (1,),
    "linear.avgpool": (False,),
    "linear.iterations": 1000,
    "linear.batch_size": 256,
    "linear.save_every": 1000,
}
