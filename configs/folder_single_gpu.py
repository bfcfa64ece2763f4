"""ViT-S/14 on one GPU, from a folder of your own pictures; no labels are needed.

Command:   python -m dinov2_jax.main --config=configs/folder_single_gpu.py --workdir=runs/mine
           --config.data.path=/pictures
Hardware:  one GPU with 24 GB or more
Time:      not measured yet
Expected:  not measured yet. The loss is no measure of quality and may stay flat for long; watch
           health/effective_rank, health/teacher_entropy and, with class folders and
           --config.eval.labels=folders, knn_top1.
Own data:  pictures unlike photographs learn better with their own colour.mean and colour.std (the
           quick start's drawings: k-NN 54.2 instead of 51.0 % after 200 steps)

Small batches need other numbers than the reference's 2048, or the loss stalls at log(prototypes):
- the rate follows sqrt(batch / 1024), the reference's own rule;
- the teacher averages over about as many pictures as there: 1 - m shrinks with the square root of
  the batch, 0.992 -> 1 - 0.008 * sqrt(128 / 2048) = 0.998;
- fewer prototypes: a batch of 128 gives 256 rows, which cannot balance 65,536 columns;
- a teacher temperature that stays at 0.04: with so few rows a softer target is soon uniform;
- Sinkhorn-Knopp instead of a centre that needs thousands of steps to settle;
- a longer frozen last layer and warm-up, counted in steps.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.total_steps = 100_000
    config.batch_size = 128
    config.group_size = 128

    config.model.variant = "vit_small"
    config.model.patch_size = 14
    config.model.drop_path_rate = 0.1
    config.crops.local_size = 98

    config.centering = "sinkhorn_knopp"
    config.dino.head_prototypes = 2048
    config.teacher.momentum = 0.998
    config.teacher.temp = 0.04
    config.optimizer.base_lr = 2e-3
    config.optimizer.warmup_steps = 10_000
    config.optimizer.freeze_last_layer_steps = 2500

    config.data.source = "folder"
    config.data.path = ""
    config.data.split = "all"
    config.eval.every_steps = 5000
    config.eval.labels = "none"  # folders of patients, years or cameras are no classes
    config.eval.test_split = "test"
    config.checkpoint.every_steps = 2500
    return config
