"""The paper's family: ViT-g/14 at 224 px, adapted to 518 px, distilled into S, B and L.

Command:   python -m dinov2_jax.main --config=configs/recipes/vitg14_family.py
           --workdir=runs/vitg14_family --config.mesh.fsdp=<devices>
           with --config.data.source and --config.data.path for LVD-142M-like pictures, and
           --config.evaluation.data.set=imagenet --config.evaluation.data.path=/imagenet
           without --workdir the plan is printed, and nothing is run
Hardware:  g at 224 px: the paper used 256 A100-40GB, 12 images each. Students: 32 GPUs with 80 GB.
           518 px: five times the patches; --config.stages.highres.micro_batches keeps the batch
           where the memory is short. Another fsdp for one stage:
           --config.stages.distil_s.mesh.fsdp=8
Time:      the paper reports 22,016 A100-hours for g, and 4,500, 5,300 and 8,000 for S, B and L
Expected:  the paper reports k-NN and linear accuracies on ImageNet of 79.0 and 81.1 (S), 82.1 and
           84.5 (B), 83.5 and 86.3 (L), 83.5 and 86.5 (g); not measured here
Resume:    the same command, on any number of devices

Values of paper tables 16 and 17. S, B and L have a plain feed-forward network, no stochastic depth,
a rate of 1e-3 and a batch of 2048; they learn from g as it is after 224 px. Three stages read the
teacher three times: config.distill.students of one stage shares its pass where devices are few.
"""

from typing import Any

import ml_collections

from configs.recipes import default

DISTILLED: dict[str, Any] = {
    "batch_size": 2048,
    "model.ffn": "mlp",
    "model.drop_path_rate": 0.0,
    "optimizer.base_lr": 1e-3,
    "optimizer.lr_scaling": "none",  # the rate above is the peak
}
STUDENTS = {"s": "vit_small", "b": "vit_base", "l": "vit_large"}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.plan.topology = "h100:32"
    config.evaluation.data.workers = 16
    config.evaluation.update(default.nested(EVALUATION))
    config.stages = stages = ml_collections.ConfigDict(sort_keys=False)
    judged = ("knn", "linear")
    stages.pretrain = default.stage("vitg14", evaluate=judged)
    stages.highres = default.stage("highres:vitg14", start="pretrain", evaluate=judged)
    for letter, variant in STUDENTS.items():
        # ViT-L's recipe has the prototypes, heads and schedules of g's.
        size = {"model.variant": variant}
        stages[f"distil_{letter}"] = default.stage(
            "vitl14", DISTILLED | size, teacher="pretrain", evaluate=judged
        )
        network = {name: x for name, x in DISTILLED.items() if name.startswith("model.")}
        stages[f"highres_{letter}"] = default.stage(
            "highres:vitl14", network | size, start=f"distil_{letter}", evaluate=judged
        )
    return config


EVALUATION = {"batch_size": 1024, "compute_dtype": "bfloat16"}
