"""Every training field, with the reference's default values: ViT-L/16, batch 2048, 125,000 steps.

Command:   python -m dinov2_jax.main --config=configs/default.py --workdir=runs/default
           The other files start from this one and change a few fields; train with one of them.
Hardware:  as configs/vitl16_short.py, which is this recipe under its own name
Time:      as configs/vitl16_short.py
Expected:  as configs/vitl16_short.py
Origin:    "Reference" means facebookresearch/dinov2, ssl_default_config.yaml. The reference counts
           epochs of 1,250 iterations; here they are written out in steps. "Ours" means that the
           reference has no such field.

An override must have the type of the value here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "train"  # train | plan; the other tasks have their own configuration files. Ours
    # Seeds weights, data order, crops, masks and drop path. Reference train.seed
    config.seed = 0
    config.total_steps = 125_000  # optimizer steps. Reference: 100 epochs x 1250
    # Images per step, over all devices. Reference: 64 per GPU x 32 GPUs (vitl16_short)
    config.batch_size = 2048
    # Images per statistical group. Mask ratios, KoLeo neighbours and the stochastic-depth subset
    # are computed within a group, so results do not depend on the number of devices. Must divide
    # batch_size. Reference: train.batch_size_per_gpu
    config.group_size = 64
    config.log_every_steps = 10  # steps between two lines of metrics.jsonl. Reference: 10
    # auto: bfloat16 on GPU and TPU, float32 on CPU | float32 | bfloat16. Ours
    config.compute_dtype = "auto"

    # Gradient accumulation: the batch is computed in so many parts, and the update is exactly that
    # of the whole batch. Must divide the number of groups on each device. Ours
    config.micro_batches = 1
    # Prototypes scored at a time; 0: all. Must divide every head_prototypes. With blocks, the
    # memory of the losses does not depend on the number of prototypes, but scores are computed 3
    # to 6 times. Ours
    config.prototype_block = 0

    config.mesh = ml_collections.ConfigDict()  # devices = data x fsdp x tensor
    config.mesh.data = -1  # copies of the parameters; -1: all devices left by the other axes. Ours
    # Splits parameters, optimizer state and the batch this many ways. Ours
    config.mesh.fsdp = 1
    # Splits matrix products this many ways; must divide the heads. Ours
    config.mesh.tensor = 1
    # Bytes of the smallest weight, of one block, that mesh.fsdp splits. Smaller ones are whole on
    # every device: a gather of less takes longer to start than to send. Ours
    config.min_shard_bytes = 2**20

    config.distributed = distributed()
    # Weights of student and teacher in a new run: a name of list_models(), a .pth of the reference,
    # a Hugging Face directory, timm's safetensors, a run or a bundle; "": random. Heads are taken
    # too if they have the configured shape. config.model must describe the weights.
    # Reference student.pretrained_weights
    config.init_from = ""
    # For config.init_from, separated by commas: tensors or modules that may be left over,
    # mask_token, float16, bfloat16, fields of config.json or preprocessor_config.json that are not
    # followed, interpolate_offset or interpolate_antialias to keep those of config.model. Ours
    config.allow = ""
    # What a new run takes from config.init_from. teacher: student and teacher start from the
    # teacher's backbone, and from its heads if they fit | both: student from student, teacher from
    # teacher, with heads and loss centres; needs a run | optimizer: both, and Adam's moments. Step
    # and schedules begin at 0. Ours
    config.init_state = "teacher"
    # How the position table of config.init_from is resampled to crops.global_size. model: as the
    # network does it, so that its features at this size stay the same | offset: torch's bicubic
    # with scale (n + 0.1) / m | size: with exact sizes | offset_antialias, size_antialias: the same
    # two with antialias. Ours
    config.init_positions = "model"
    config.model = _model()
    config.dino, config.ibot = _dino(), _ibot()
    # Teacher targets: centering (softmax) | sinkhorn_knopp. Reference train.centering
    config.centering = "centering"
    config.teacher = _teacher()
    config.optimizer = _optimizer()
    config.crops, config.colour = _crops(), _colour()
    config.data, config.eval, config.checkpoint = _data(), _eval(), _checkpoint()
    config.distill = _distill()
    config.plan = _plan()
    return config


def distributed() -> ml_collections.ConfigDict:
    """How the processes of one run find each other. Reference: SLURM or torchrun variables."""
    processes = ml_collections.ConfigDict()
    # auto: SLURM step with several tasks, or TPU pod, otherwise one process | none: one process |
    # host:port of process 0. Ours
    processes.coordinator = "auto"
    processes.processes = -1  # number of processes; needed with host:port, -1 otherwise. Ours
    processes.process_id = -1  # number of this process, from 0; needed with host:port. Ours
    # s without a sign of life after which a process counts as dead and the others end. Ours: JAX's
    # default
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
    # Channels of a picture; colour.mean and colour.std need as many numbers. 3: RGB | 1: gray,
    # colour pictures are converted | others: .npy files of uint8 [H, W, C], named in a list file.
    # Ours
    model.in_channels = 3
    # mlp | swiglu (packed, hidden size 2/3 rounded up to 8). Reference student.ffn_layer
    model.ffn = "mlp"
    model.registers = 0  # extra tokens (Darcet et al. 2023). Reference student.num_register_tokens
    model.layerscale = 1e-5  # initial gain of every residual branch. Reference student.layerscale
    # Fraction of a group's images that skip a branch. Reference student.drop_path_rate
    model.drop_path_rate = 0.3
    # True: the same rate at every depth; False: rising linearly from 0. Reference
    model.drop_path_uniform = True
    model.qkv_bias = True  # biases of the attention's input projection. Reference student.qkv_bias
    model.proj_bias = True  # biases of its output projection. Reference student.proj_bias
    model.ffn_bias = True  # biases of the feed-forward network. Reference student.ffn_bias
    # Added to the grid size when positions are resampled; register models use 0.0. Reference
    model.interpolate_offset = 0.1
    model.interpolate_antialias = False  # register models use True. Reference
    # scan: compile one block and run it in a loop | unroll: compile each block; a scan stores and
    # moves twice the activations on a GPU, but compiles faster | auto: unroll on GPU, else scan.
    # The parameters are the same. Ours
    model.blocks = "auto"
    # What the backward pass recomputes to save memory. none | pointwise: norms, GELU and softmax,
    # but no matrix products | blocks: everything but each block's input; takes about a quarter more
    # time | auto: pointwise under a scan, otherwise none. Ours
    model.remat = "auto"
    # auto: by platform, dtype and length | xla: everywhere | looped: CPU | splash: TPU |
    # cudnn, triton: bf16 on GPU. If the choice cannot run here, xla runs instead and the log says
    # so. Ours
    model.attention = "auto"
    return model


def _dino() -> ml_collections.ConfigDict:
    dino = ml_collections.ConfigDict()
    dino.loss_weight = 1.0  # weight of the cls-token loss, local and global terms. Reference
    dino.koleo_loss_weight = 0.1  # KoLeo spreads the cls tokens of a group; 0: off. Reference
    dino.head_prototypes = 65536  # output size of the head. Reference dino.head_n_prototypes
    dino.head_bottleneck_dim = 256  # width before the prototypes. Reference
    dino.head_layers = 3  # linear layers up to the bottleneck. Reference dino.head_nlayers
    dino.head_hidden_dim = 2048  # width of the hidden layers. Reference
    return dino


def _ibot() -> ml_collections.ConfigDict:
    ibot = ml_collections.ConfigDict()
    ibot.loss_weight = 1.0  # weight of the masked-patch loss. Reference
    # Fraction of global crops that are masked at all. Reference ibot.mask_sample_probability
    ibot.mask_probability = 0.5
    # Smallest and largest masked fraction of a masked crop. Reference ibot.mask_ratio_min_max
    ibot.mask_ratio = (0.1, 0.5)
    # True: its own head with the four sizes below; False: the DINO head. Reference
    ibot.separate_head = False
    ibot.head_prototypes = 65536  # as dino.head_prototypes. Reference
    ibot.head_bottleneck_dim = 256  # as dino.head_bottleneck_dim. Reference
    ibot.head_layers = 3  # as dino.head_layers. Reference
    ibot.head_hidden_dim = 2048  # as dino.head_hidden_dim. Reference
    return ibot


def _teacher() -> ml_collections.ConfigDict:
    teacher = ml_collections.ConfigDict()
    # EMA momentum at step 0; a cosine leads to final_momentum. Reference teacher.momentum_teacher
    teacher.momentum = 0.992
    teacher.final_momentum = 1.0  # EMA momentum at the last step. Reference
    teacher.warmup_temp = 0.04  # softmax temperature of the targets at step 0. Reference
    teacher.temp = 0.07  # softmax temperature from temp_warmup_steps on. Reference
    teacher.temp_warmup_steps = 37_500  # steps of the linear change between both. Reference
    return teacher


def _optimizer() -> ml_collections.ConfigDict:
    optimizer = ml_collections.ConfigDict()
    # Peak learning rate of AdamW at batch 1024 (see lr_scaling). Reference optim.base_lr
    optimizer.base_lr = 0.004
    # sqrt_wrt_1024: peak = base_lr * sqrt(batch_size / 1024) | none: peak = base_lr. Reference
    optimizer.lr_scaling = "sqrt_wrt_1024"
    optimizer.min_lr = 1e-6  # learning rate at the last step; not scaled with the batch. Reference
    optimizer.warmup_steps = 12_500  # steps of linear growth from 0 to the peak. Reference
    optimizer.weight_decay = 0.04  # at step 0; a cosine leads to weight_decay_end. Reference
    optimizer.weight_decay_end = 0.4  # at the last step. Reference
    # Largest gradient norm of a sub-module (backbone, each head). Reference optim.clip_grad
    optimizer.clip_norm = 3.0
    # Steps during which the prototypes' learning rate is 0. Reference: 1 epoch
    optimizer.freeze_last_layer_steps = 1250
    # Steps during which the backbone's learning rate is 0, so that only the heads train. They cost
    # as much as other steps; Adam's moments and the teacher go on. Use it with config.init_from
    # and new heads. Ours
    optimizer.freeze_backbone_steps = 0
    # Factor of the patch embedding's learning rate. Reference optim.patch_embed_lr_mult
    optimizer.patch_embed_lr_multiplier = 0.2
    optimizer.layerwise_decay = 0.9  # learning rate of a block / that of the next one. Reference
    optimizer.beta1 = 0.9  # decay of AdamW's first moment. Reference optim.adamw_beta1
    optimizer.beta2 = 0.999  # decay of AdamW's second moment. Reference optim.adamw_beta2
    return optimizer


def _crops() -> ml_collections.ConfigDict:
    crops = ml_collections.ConfigDict()
    # px, a multiple of the patch; there are always 2. Reference crops.global_crops_size
    crops.global_size = 224
    crops.global_scale = (0.32, 1.0)  # fraction of the picture's area. Reference
    crops.local_size = 96  # px, a multiple of the patch. Reference crops.local_crops_size
    crops.local_scale = (0.05, 0.32)  # fraction of the picture's area. Reference
    crops.local_number = 8  # local crops per picture; 0: none. Reference
    return crops


def _colour() -> ml_collections.ConfigDict:
    colour = ml_collections.ConfigDict()
    colour.jitter_probability = 0.8  # of the next four. Reference augmentations.py, as all below
    colour.brightness = 0.4  # factor from [1 - x, 1 + x]. Reference
    colour.contrast = 0.4  # factor from [1 - x, 1 + x]. Reference
    colour.saturation = 0.2  # factor from [1 - x, 1 + x]. Reference
    colour.hue = 0.1  # shift from [-x, x]; 1 is the whole colour circle. Reference
    colour.grayscale_probability = 0.2  # the crop keeps its channels, but all are equal. Reference
    # Blur probability of global crop 1, global crop 2, local crops. The paper's text says 1.0, 0.1,
    # 0.5, but the reference's code inverts the first two. The released models were trained with
    # these values. Reference
    colour.blur_probabilities = (0.0, 0.9, 0.5)
    colour.blur_kernel = 9  # taps. Reference
    colour.blur_sigma = (0.1, 2.0)  # px. Reference
    colour.solarize_probability = 0.2  # global crop 2 only. Reference
    colour.solarize_threshold = 128  # levels, 0 to 255. Reference
    colour.mean = (0.485, 0.456, 0.406)  # per channel, pixels from 0 to 1; ImageNet's. Reference
    colour.std = (0.229, 0.224, 0.225)  # per channel, pixels from 0 to 1; ImageNet's. Reference
    return colour


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # folder | tar | array_record | tfds | openmoji | manifest: what a curation kept. Reference: its
    # own ImageNet loader
    data.source = "tfds"
    # A folder or list file | tar files | ArrayRecord files | TFDS name, or name@data_dir | "" for
    # openmoji | the folder of a manifest. Ours
    data.path = "imagenet2012"
    # of a folder with train/ and val/, tfds and openmoji; all: all pictures. Ours
    data.split = "train"
    # Loader processes; 0: load in the main process. Reference train.num_workers (per GPU)
    data.workers = 10
    # The run stops if a larger fraction of the pictures cannot be read. Ours
    data.max_bad_fraction = 0.01
    # Pixels of a picture; larger ones are skipped. Decoded, this many take 300 MB. Ours
    data.max_pixels = 100_000_000
    data.cache_dir = ""  # where openmoji is drawn; "": the user's cache directory. Ours
    return data


def _eval() -> ml_collections.ConfigDict:
    evaluation = ml_collections.ConfigDict()
    # Steps between two k-NN evaluations of the teacher; also at step 0 and at the end. 0: never.
    # Reference: 12500
    evaluation.every_steps = 12_500
    # auto: if the source has labels | folders: names of the class folders | none. Ours
    evaluation.labels = "auto"
    # Pictures of each split that are used while training, evenly spread; 0: all. Task "eval" always
    # uses all. With all of ImageNet, reading alone takes long. Ours
    evaluation.max_pictures = 50_000
    evaluation.train_split = "train"  # split of the k-NN bank. Ours
    evaluation.test_split = "validation"  # split of the k-NN queries. Ours
    evaluation.k = 20  # neighbours that vote. Reference eval/knn.py
    evaluation.temperature = 0.07  # of the votes. Reference eval/knn.py
    # Iterations of a linear probe beside k-NN, 256 pictures each; the best of 13 learning rates
    # counts. 0: no probe. Ours
    evaluation.linear_iterations = 1000
    evaluation.batch_size = 256  # images per forward pass. Reference eval/knn.py
    evaluation.resize_size = 256  # px of the shorter side. Reference
    evaluation.image_size = 224  # px of the centre crop. Reference
    return evaluation


def _checkpoint() -> ml_collections.ConfigDict:
    checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 3750  # steps; also at the end and on SIGTERM. Reference: 3 epochs
    checkpoint.keep_last = 3  # checkpoints that are kept. Reference
    # Checkpoints at multiples of so many steps are never deleted; 0: none. Reference: the teacher
    # of each evaluation
    checkpoint.keep_every_steps = 12_500
    return checkpoint


def _distill() -> ml_collections.ConfigDict:
    distill = ml_collections.ConfigDict()
    # The frozen teacher: a run, or weights; bundles and released files hold no projection heads,
    # see kind and teacher_heads. "": pretraining, where the teacher is the student's average.
    # With a teacher there are no masks and no stochastic depth, and the average is kept to be
    # evaluated and exported. Task "plan" also takes the name of the teacher's recipe. Paper section
    # 5; ours
    distill.teacher = ""
    # Recipes of several students who share the crops and the teacher's pass, such as
    # ("vits14", "vitb14"); each trains in <workdir>/<name>. A recipe gives model, optimizer, dino,
    # ibot, the momentum and init_from; all else, and what has to fit the teacher (patches,
    # channels, prototypes), is that of this configuration. (): one student, this configuration's.
    # Ours
    distill.students = ()
    # What the student learns. prototypes: DINO and iBOT on the prototypes of the teacher, as in the
    # paper, with Sinkhorn-Knopp's targets; needs the teacher's heads | features: the directions of
    # its cls and patch tokens through a linear projection, with dino.loss_weight (cls tokens),
    # ibot.loss_weight (patches) and KoLeo; any teacher of the same patches and channels. It uses no
    # field of prototypes, heads, temperatures or masks. Ours
    distill.kind = "prototypes"
    # Attention heads of a teacher whose file does not tell them; 0: those that its width tells.
    # Ours
    distill.attention_heads = 0
    # Patches that iBOT learns with kind prototypes: all of both global crops | masked: those that
    # pretraining would mask, whose loss is half as large. Ours: the reference has no code of its
    # distillation
    distill.patches = "all"
    # If a teacher of prototypes has no heads, like released backbones. "": refuse it | train: train
    # heads on the frozen backbone first, by the losses of pretraining, in <workdir>/teacher_heads.
    # Ours
    distill.teacher_heads = ""
    distill.head_steps = 10_000  # steps of this training; schedules are shortened to it. Ours
    return distill


def _plan() -> ml_collections.ConfigDict:
    plan = ml_collections.ConfigDict()
    # Devices that task "plan" compiles for. TPUs: v5e:4x4, v5p:4x4x8 or v6e:4x4 (chips along each
    # axis); GPUs: h100:8 or h200:4x8 (machines x 8); "": the devices of this machine. Ours
    plan.topology = ""
    # Assumed fraction of the chips' bf16 peak. Published DINOv2 runs reach 0.31 to 0.38 on A100.
    # Ours
    plan.mfu = 0.4
    # How many other settings to compile if the configured one does not fit; 0: none. Ours
    plan.trials = 6
    return plan
