"""The paper's ablations as small stages side by side: what each part of the method is worth.

Command:   python -m dinov2_jax.main --config=configs/recipes/ablation.py --workdir=runs/ablation
           photographs: add --config.data.source=folder --config.data.path=/labelled
Hardware:  2 CPU cores, 4 GB of memory
Time:      half an hour on 2 CPU cores
Expected:  runs/ablation/stages.html; one seed on few drawings differs by a point or two by chance:
           repeat it with --config.seed=1 in another workdir before you believe a difference
Resume:    the same command

Each stage changes one thing of `all`: the loss that spreads features (paper table 3), the heads of
both losses (table 1), how targets are balanced (table 1), and the size of the crops (figure 6).
Two students then learn from `all` by all patches, or by the masked ones alone.
"""

import ml_collections

from configs.recipes import default, quick

LARGER = {"crops.global_size": 48, "eval.resize_size": 48, "eval.image_size": 48}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.evaluation.update(default.nested(quick.EVALUATION))
    config.stages = stages = ml_collections.ConfigDict(sort_keys=False)
    config.set.total_steps = 500
    stages.all = _pretrained({})
    stages.no_koleo = _pretrained({"dino.koleo_loss_weight": 0.0})
    stages.untied_heads = _pretrained(
        {
            "ibot.separate_head": True,
            "ibot.head_prototypes": 256,
            "ibot.head_layers": 1,
            "ibot.head_bottleneck_dim": 64,
        }
    )
    stages.centering = _pretrained({"centering": "centering"})
    stages.larger = _pretrained(LARGER)
    stages.adapted = default.stage(
        "highres:quickstart", LARGER | {"total_steps": 50}, start="all", evaluate=JUDGED
    )
    for patches in ("all", "masked"):
        stages[f"distil_{patches}_patches"] = default.stage(
            "quickstart",
            {"model.dim": 32, "distill.patches": patches},
            teacher="all",
            evaluate=JUDGED,
        )
    return config


JUDGED = ("knn", "linear_cached")


def _pretrained(settings: dict[str, object]) -> ml_collections.ConfigDict:
    return default.stage("quickstart", settings, evaluate=JUDGED)
