"""A small ViT on 1,473 emoji drawings: see the whole method work on a laptop.

Command:   bash launch/quickstart.sh
           or python -m dinov2_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
Hardware:  2 CPU cores, 4 GB of memory
Time:      5 min 20 s with the installation, on 2 cores of an AMD EPYC
Expected:  k-NN accuracy (k 20, 392 held-out drawings, 9 classes) rises from 48 to 59 %, the mean of
           three seeds; single runs end between 56 and 60 %. Centred pixels reach 62.8 % with the
           same k-NN: docs/small_data.md says why, and what was tried
Own pictures: add --config.data.source=folder --config.data.path=/pictures. This is a first look
           only: the colours below are set for drawings.

Small drawings and a small batch need other values than photographs:
- patches of 16 px, half the side of a crop: positions hardly matter in a drawing, and larger
  patches cost less;
- mean and std of the drawings themselves, otherwise the white background dominates all features;
- a stronger KoLeo loss and weaker blur;
- few prototypes, one linear layer in the head and a temperature of 0.03, which keep the targets of
  a small batch apart.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.total_steps = 1500
    config.batch_size = 128
    config.group_size = 64
    config.log_every_steps = 10

    config.model.variant = "vit_tiny"
    config.model.dim = 64
    config.model.depth = 4
    config.model.heads = 4
    config.model.patch_size = 16
    # With 1e-5, all features start nearly equal, and k-NN at step 0 would mean nothing.
    config.model.layerscale = 1.0
    config.model.drop_path_rate = 0.0
    config.model.blocks = "unroll"  # 4 blocks compile in seconds and run faster unrolled

    config.centering = "sinkhorn_knopp"  # balances prototypes within a batch, without a warm-up
    config.dino.head_prototypes = 256  # a batch has 256 global crops
    config.dino.head_layers = 1
    config.dino.head_bottleneck_dim = 64
    config.dino.koleo_loss_weight = 0.3
    config.teacher.momentum = 0.99
    config.teacher.warmup_temp = 0.03
    config.teacher.temp = 0.03

    config.optimizer.base_lr = 1e-3
    config.optimizer.lr_scaling = "none"
    config.optimizer.warmup_steps = 50
    config.optimizer.freeze_last_layer_steps = 0
    config.optimizer.layerwise_decay = 1.0

    config.crops.global_size = 32
    config.crops.local_size = 16
    config.colour.mean = (0.842, 0.822, 0.780)  # of the drawings' pixels, mostly white
    config.colour.std = (0.311, 0.323, 0.367)
    # Half as strong as the reference: drawings have few, flat colours, which carry meaning.
    config.colour.brightness = 0.2
    config.colour.contrast = 0.2
    config.colour.saturation = 0.1
    config.colour.hue = 0.05
    config.colour.grayscale_probability = 0.1
    config.colour.blur_sigma = (0.1, 1.0)  # the crops are seven times smaller

    config.data.source = "openmoji"
    config.data.path = ""
    config.data.workers = 1
    config.eval.every_steps = 100
    config.eval.test_split = "test"
    config.eval.resize_size = 32
    config.eval.image_size = 32
    config.checkpoint.every_steps = 100
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every_steps = 0
    return config
