"""Every field, with the reference's default values: ViT-L/16, batch 2048, 125,000 steps.

Command:   python -m dinov2_jax.main --config=configs/default.py --workdir=runs/default
           The overlays start from this list of fields; to train, begin with one of them.
Origin:    "Reference" is facebookresearch/dinov2, ssl_default_config.yaml, whose epochs of 1,250
           iterations are written out in steps here. "Ours": the reference has no such field.

A field's type is the type of its value here; an override of another type is refused.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "train"  # train | plan; the other tasks have configurations of their own
    # The one seed of weights, data order, crops, masks and drop path. Reference train.seed
    config.seed = 0
    config.total_steps = 125_000  # optimizer steps. Reference: 100 epochs x 1250
    # Images a step over all devices. Reference: 64 a GPU x 32 GPUs (vitl16_short)
    config.batch_size = 2048
    # Images over which masks are spread, KoLeo looks for neighbours and stochastic depth picks its
    # subset. It stands for the reference's train.batch_size_per_gpu, so results do not depend on
    # the number of devices. Must divide batch_size.
    config.group_size = 64
    config.log_every_steps = 10  # steps between lines in metrics.jsonl. Reference: 10
    # auto: bfloat16 on GPU and TPU, float32 on CPU | float32 | bfloat16. Ours
    config.compute_dtype = "auto"

    # Parts that a batch is computed in, one after the other (gradient accumulation); the update is
    # that of the whole batch. Must divide the statistical groups of a device. Ours
    config.micro_batches = 1
    # Prototypes whose scores are computed at a time, a divisor of every head_prototypes; 0: all.
    # With blocks the losses' memory does not depend on the number of prototypes, at the price of
    # computing the scores again (3 to 6 times). Ours
    config.prototype_block = 0

    # Devices = data x fsdp x tensor. Ours
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # copies of the parameters; -1: the devices that the other axes leave
    config.mesh.fsdp = 1  # parameters and optimizer state are split this many ways (the batch too)
    config.mesh.tensor = 1  # matrix products are split this many ways

    config.distributed = distributed()
    # Weights that a fresh run starts with, student and teacher alike: a name of list_models(), a
    # .pth of the reference, a Hugging Face directory, timm's safetensors, one of our runs or
    # bundles. Their heads come along where they are of the configured shape. config.model must
    # describe them: what differs is named. "": random. Reference student.pretrained_weights
    config.init_from = ""
    config.model = _model()
    config.dino, config.ibot = _dino(), _ibot()
    # Teacher targets: centering (softmax) | sinkhorn_knopp. Reference train.centering
    config.centering = "centering"
    config.teacher = _teacher()
    config.optimizer = _optimizer()
    config.crops, config.colour = _crops(), _colour()
    config.data, config.eval, config.checkpoint = _data(), _eval(), _checkpoint()
    config.plan = _plan()
    return config


def distributed() -> ml_collections.ConfigDict:
    """How the processes of one run find each other. Reference: SLURM or torchrun variables."""
    processes = ml_collections.ConfigDict()
    # auto: a SLURM step of several tasks or a TPU pod, else one process | none: one process |
    # host:port of process 0. Ours
    processes.coordinator = "auto"
    processes.processes = -1  # how many; needed with host:port, -1 otherwise. Ours
    processes.process_id = -1  # which one this is, from 0; needed with host:port. Ours
    # s after which a silent process counts as dead and the others end. Ours: JAX's default
    processes.heartbeat_s = 100
    return processes


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # vit_tiny | vit_small | vit_base | vit_large | vit_giant2. Reference student.arch
    model.variant = "vit_large"
    model.dim = 0  # token width; 0: the variant's. Ours
    model.depth = 0  # number of blocks; 0: the variant's. Ours
    model.heads = 0  # attention heads; 0: the variant's. Ours
    model.patch_size = 16  # px. Reference student.patch_size
    # Channels of a picture, and numbers in colour.mean and colour.std. 3: RGB | 1: gray, which
    # pictures in colour become | others: .npy files of uint8 [H, W, C], named in a list file. Ours
    model.in_channels = 3
    # mlp | swiglu (packed, hidden size 2/3 rounded up to 8). Reference student.ffn_layer
    model.ffn = "mlp"
    model.registers = 0  # extra tokens (Darcet et al. 2023). Reference student.num_register_tokens
    model.layerscale = 1e-5  # initial gain of every residual branch. Reference student.layerscale
    # Share of a group's images that skips a branch. Reference student.drop_path_rate
    model.drop_path_rate = 0.3
    # The same rate at every depth; False: rising linearly from 0. Reference
    model.drop_path_uniform = True
    model.qkv_bias = True  # biases of the attention's input projection. Reference student.qkv_bias
    model.proj_bias = True  # ... of its output projection. Reference student.proj_bias
    model.ffn_bias = True  # ... of the feed-forward network. Reference student.ffn_bias
    # Added to the grid when positions are resampled; 0.0 in register models. Reference
    model.interpolate_offset = 0.1
    model.interpolate_antialias = False  # True in register models. Reference
    # One compiled block, scanned; False unrolls: slower to compile. Same parameters. Ours
    model.scan_blocks = True
    # What the backward pass computes again to save memory. none | pointwise: norms, GELU, softmax;
    # products are kept | blocks: all but a block's input, a quarter more time. Ours
    model.remat = "none"
    # auto: by platform, dtype, length | xla: everywhere | looped: CPU | splash: TPU |
    # cudnn, triton: bf16 on GPU. What cannot run here is replaced by xla, and the log says so. Ours
    model.attention = "auto"
    return model


def _dino() -> ml_collections.ConfigDict:
    dino = ml_collections.ConfigDict()
    dino.loss_weight = 1.0  # cls-token loss, local and global terms. Reference
    dino.koleo_loss_weight = 0.1  # spreads the cls tokens of a group; 0 switches it off. Reference
    dino.head_prototypes = 65536  # output size. Reference dino.head_n_prototypes
    dino.head_bottleneck_dim = 256  # width before the prototypes. Reference
    dino.head_layers = 3  # linear layers up to the bottleneck. Reference dino.head_nlayers
    dino.head_hidden_dim = 2048  # Reference
    return dino


def _ibot() -> ml_collections.ConfigDict:
    ibot = ml_collections.ConfigDict()
    ibot.loss_weight = 1.0  # masked-patch loss. Reference
    # Share of global crops that is masked at all. Reference ibot.mask_sample_probability
    ibot.mask_probability = 0.5
    # Least and greatest masked share of a masked crop. Reference ibot.mask_ratio_min_max
    ibot.mask_ratio = (0.1, 0.5)
    # True: an own head with the four sizes below; False: the DINO head. Reference
    ibot.separate_head = False
    ibot.head_prototypes = 65536  # Reference
    ibot.head_bottleneck_dim = 256  # Reference
    ibot.head_layers = 3  # Reference
    ibot.head_hidden_dim = 2048  # Reference
    return ibot


def _teacher() -> ml_collections.ConfigDict:
    teacher = ml_collections.ConfigDict()
    # EMA of the student at step 0, cosine to final_momentum. Reference teacher.momentum_teacher
    teacher.momentum = 0.992
    teacher.final_momentum = 1.0  # Reference
    teacher.warmup_temp = 0.04  # softmax temperature of the targets at step 0. Reference
    teacher.temp = 0.07  # ... and after temp_warmup_steps, linear between. Reference
    teacher.temp_warmup_steps = 37_500  # Reference: 30 epochs
    return teacher


def _optimizer() -> ml_collections.ConfigDict:
    optimizer = ml_collections.ConfigDict()
    # AdamW's peak rate at batch 1024 (see lr_scaling). Reference optim.base_lr
    optimizer.base_lr = 0.004
    # Peak = base_lr * sqrt(batch_size / 1024) | none: peak = base_lr. Reference
    optimizer.lr_scaling = "sqrt_wrt_1024"
    optimizer.min_lr = 1e-6  # rate at the end of the cosine; not scaled with the batch. Reference
    optimizer.warmup_steps = 12_500  # linear from 0 to the peak. Reference: 10 epochs
    optimizer.weight_decay = 0.04  # at step 0, cosine to weight_decay_end. Reference
    optimizer.weight_decay_end = 0.4  # Reference
    # Greatest gradient norm of a sub-module (backbone, each head). Reference optim.clip_grad
    optimizer.clip_norm = 3.0
    # The prototypes' rate is 0 for so long. Reference: 1 epoch
    optimizer.freeze_last_layer_steps = 1250
    # The backbone's rate is 0 for so long: only the heads train, at the price of whole steps; the
    # gradients' moments and the teacher go on. For config.init_from with fresh heads. Ours
    optimizer.freeze_backbone_steps = 0
    optimizer.patch_embed_lr_multiplier = 0.2  # Reference optim.patch_embed_lr_mult
    optimizer.layerwise_decay = 0.9  # rate of a block / rate of the next one. Reference
    optimizer.beta1 = 0.9  # Reference optim.adamw_beta1
    optimizer.beta2 = 0.999  # Reference optim.adamw_beta2
    return optimizer


def _crops() -> ml_collections.ConfigDict:
    crops = ml_collections.ConfigDict()
    # px, a multiple of the patch; always 2 such crops. Reference crops.global_crops_size
    crops.global_size = 224
    crops.global_scale = (0.32, 1.0)  # share of the picture's area. Reference
    crops.local_size = 96  # px. Reference crops.local_crops_size
    crops.local_scale = (0.05, 0.32)  # share of the picture's area. Reference
    crops.local_number = 8  # 0: none. Reference
    return crops


def _colour() -> ml_collections.ConfigDict:
    colour = ml_collections.ConfigDict()
    colour.jitter_probability = 0.8  # reference augmentations.py, here and below
    colour.brightness = 0.4  # factor from [1 - x, 1 + x]
    colour.contrast = 0.4
    colour.saturation = 0.2
    colour.hue = 0.1  # shift from [-x, x] of the colour circle
    colour.grayscale_probability = 0.2
    # Blur of global crop 1, global crop 2, local crops. The paper's text says 1.0, 0.1, 0.5; the
    # reference's code inverts the first two, and the released models were trained with what stands
    # here.
    colour.blur_probabilities = (0.0, 0.9, 0.5)
    colour.blur_kernel = 9  # taps
    colour.blur_sigma = (0.1, 2.0)  # px
    colour.solarize_probability = 0.2  # global crop 2 only
    colour.solarize_threshold = 128  # of 0..255
    colour.mean = (0.485, 0.456, 0.406)  # ImageNet's, of 0..1
    colour.std = (0.229, 0.224, 0.225)  # ImageNet's, of 0..1
    return colour


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # folder | array_record | tfds | openmoji. Reference: ImageNet through its own loader
    data.source = "tfds"
    # A folder or list file | ArrayRecord files | TFDS name | "" for openmoji
    data.path = "imagenet2012"
    data.split = "train"  # of tfds and openmoji
    # Loader processes; 0: in the main process. Reference train.num_workers (a GPU)
    data.workers = 10
    # A run stops when a greater share of the pictures cannot be read. Ours
    data.max_bad_fraction = 0.01
    data.max_pixels = 100_000_000  # greater pictures are skipped: 300 MB each once decoded. Ours
    data.cache_dir = ""  # where openmoji is drawn to; "": the user's cache directory. Ours
    return data


def _eval() -> ml_collections.ConfigDict:
    evaluation = ml_collections.ConfigDict()
    # k-NN of the teacher, also at step 0 and at the end; 0: never. Reference: 12500
    evaluation.every_steps = 12_500
    # auto: if the source has labels | folders: names of the class folders | none. Ours
    evaluation.labels = "auto"
    # Pictures of each split that are used while training, evenly spread; 0: all. Task "eval" always
    # uses all. Ours: ImageNet's 1.28 million would take an hour on 10 workers each time.
    evaluation.max_pictures = 50_000
    evaluation.train_split = "train"  # the labelled bank of the k-NN
    evaluation.test_split = "validation"  # what it is asked
    evaluation.k = 20  # neighbours. Reference eval/knn.py
    evaluation.temperature = 0.07  # of the vote. Reference eval/knn.py
    # Of a linear probe beside k-NN, 256 pictures each, the best of 13 learning rates; 0: none. Ours
    evaluation.linear_iterations = 1000
    evaluation.batch_size = 256  # images a forward pass. Reference eval/knn.py
    evaluation.resize_size = 256  # px of the shorter side. Reference
    evaluation.image_size = 224  # px of the centre crop. Reference
    return evaluation


def _checkpoint() -> ml_collections.ConfigDict:
    checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 3750  # also at the end and on SIGTERM. Reference: 3 epochs
    checkpoint.keep_last = 3  # Reference: 3
    # These are kept for good; 0: none. Reference: a teacher each evaluation period
    checkpoint.keep_every_steps = 12_500
    return checkpoint


def _plan() -> ml_collections.ConfigDict:
    plan = ml_collections.ConfigDict()
    # What task "plan" compiles for: TPUs as v5e:4x4, v5p:4x4x8 or v6e:4x4 (chips along each axis),
    # GPUs as h100:8 or h200:4x8 (machines x 8); "": the devices at hand. Ours
    plan.topology = ""
    # Assumed share of the chips' bf16 peak. Published DINOv2 runs reach 0.31 to 0.38 on A100. Ours
    plan.mfu = 0.4
    # Other settings that are compiled if the configured one does not fit; 0: none. Ours
    plan.trials = 6
    return plan
