"""A small ViT on 4,000 emoji drawings: see the whole method work on a laptop.

Command:   bash launch/quickstart.sh
           or python -m dinov2_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
Hardware:  2 CPU cores, 4 GB of memory
Time:      not measured yet
Expected:  not measured yet
Own pictures: add --config.data.source=folder --config.data.path=/pictures
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.total_steps = 1800
    config.batch_size = 64
    config.group_size = 64
    config.log_every_steps = 10

    config.model.variant = "vit_tiny"
    config.model.dim = 96
    config.model.depth = 4
    config.model.heads = 3
    config.model.patch_size = 8
    # At 1e-5 a network of 4 blocks passes little but the position table on, and k-NN at step 0 is
    # meaningless.
    config.model.layerscale = 1.0
    config.model.drop_path_rate = 0.1

    # As many prototypes as a batch of 64 can tell apart; 65536 stay near the uniform loss.
    config.dino.head_prototypes = 256
    config.dino.head_bottleneck_dim = 64
    config.dino.head_hidden_dim = 256
    # Balances the prototypes within a batch: no centre to warm up
    config.centering = "sinkhorn_knopp"
    config.teacher.momentum = 0.99
    config.teacher.temp_warmup_steps = 540

    config.optimizer.base_lr = 1e-3
    config.optimizer.lr_scaling = "none"
    config.optimizer.warmup_steps = 180
    config.optimizer.freeze_last_layer_steps = 18
    config.optimizer.layerwise_decay = 1.0

    config.crops.global_size = 32
    config.crops.local_size = 16

    config.data.source = "openmoji"
    config.data.path = ""
    config.data.workers = 2
    config.eval.every_steps = 300
    config.eval.test_split = "test"
    config.eval.resize_size = 32
    config.eval.image_size = 32
    config.checkpoint.every_steps = 300
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every_steps = 0
    return config
