"""Continue pretraining from released weights with your own pictures, on one GPU; no labels needed.

Command:   python -m dinov2_jax.main --config=configs/continue_pretraining.py --workdir=runs/more
           --config.data.path=/pictures
Hardware:  one GPU with 24 GB or more
Time:      not measured
Expected:  not measured. With class folders and --config.eval.labels=folders, knn_top1 of step 0 is
           the accuracy of the released weights on these pictures: the run has to beat it.
Others:    --config.init_from takes any weights that config.model describes. If they differ, the
           error names the flags to add; for ViT-B with registers these are
           --config.init_from=dinov2_vitb14_reg --config.model.variant=vit_base
           --config.model.registers=4 --config.model.interpolate_offset=0.0
           --config.model.interpolate_antialias=true
Gray:      --config.model.in_channels=1
           --config.colour.mean="(0.449,)" --config.colour.std="(0.226,)"

Differences from configs/folder_single_gpu.py, chosen by reasoning and from the reference's values,
not yet tried:
- the peak learning rate is 3.5e-5 (1e-4 * sqrt(128 / 1024)) instead of 7e-4, because features
  should change a little and not be replaced;
- the heads were not released. They start random and train alone for 2,000 steps, so that their
  gradients do not damage the backbone;
- the teacher averages over 1,000 steps, because it starts good while its heads start bad;
- no stochastic depth, as in the training of the released S, B and L, which were distilled;
- weight decay stays at 0.04: the run is too short for a higher one.
"""

import ml_collections

from configs import folder_single_gpu


def get_config() -> ml_collections.ConfigDict:
    config = folder_single_gpu.get_config()
    config.total_steps = 20_000
    config.init_from = "dinov2_vits14"

    config.model.drop_path_rate = 0.0
    config.teacher.momentum = 0.999
    config.optimizer.base_lr = 1e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.freeze_last_layer_steps = 500
    config.optimizer.freeze_backbone_steps = 2000
    config.optimizer.weight_decay_end = 0.04

    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    return config
