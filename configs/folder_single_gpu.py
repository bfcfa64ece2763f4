"""ViT-S/14 on one GPU, from a folder of your own pictures; no labels needed.

Command:   python -m dinov2_jax.main --config=configs/folder_single_gpu.py --workdir=runs/mine
           --config.data.path=/pictures
Hardware:  one GPU with 24 GB or more
Time:      not measured yet
Expected:  not measured yet. The loss does not measure quality and may stay flat for long. Watch
           health/effective_rank, health/teacher_entropy and, with class folders and
           --config.eval.labels=folders, knn_top1.
Own data:  for pictures that are not photographs, set colour.mean and colour.std to their own mean
           and standard deviation

With the reference's values for a batch of 2048, a small batch stalls at a loss of log(prototypes):
- the learning rate follows sqrt(batch / 1024), the reference's rule;
- teacher momentum: 1 - m shrinks with the square root of the batch,
  0.992 -> 1 - 0.008 * sqrt(128 / 2048) = 0.998;
- fewer prototypes: a batch of 128 has 256 global crops, which cannot balance 65,536 prototypes;
- the teacher temperature stays at 0.04: with so few crops, softer targets soon become uniform;
- Sinkhorn-Knopp, because the centre needs thousands of steps to settle;
- the last layer is frozen longer, and the warm-up is longer, counted in steps.
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
    config.data.split = "train"  # all pictures, or those of train/ if there is val/ or test/
    config.eval.every_steps = 5000
    config.eval.labels = "none"  # folders may be patients, years or cameras instead of classes
    config.eval.test_split = "test"
    config.checkpoint.every_steps = 2500
    return config
