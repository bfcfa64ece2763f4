"""All fields of the evaluations; the other files of this folder name a protocol each.

Command:   python -m dinov2_jax.main --config=configs/eval/default.py
           --config.checkpoint=runs/quickstart --config.protocols=knn,logreg,linear_cached
Hardware:  any; features go over all devices and processes, and are computed once for all protocols
Time:      quick start's model and drawings: k-NN and logistic regression in a minute on 2 CPU cores
Expected:  a table, results.json and results.html in the workdir, by default
           <run>/eval/<step>/<data set>
Own data:  --config.data.source=folder --config.data.path=/labelled, which holds train/<class>/ and
           test/<class>/, and may hold val/<class>/ for choosing hyper-parameters
Resume:    the same command; finished features and results are not computed again
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "eval"  # what `python -m dinov2_jax.main` does with this configuration
    # A run (its newest step), one of its checkpoints, a released name (list_models()), .pth,
    # Hugging Face directory, timm file or bundle.
    config.checkpoint = ""
    config.which = "teacher"  # teacher | student; of training checkpoints
    # Attention heads, if neither the file nor the width tells them; 0: they do
    config.heads = 0
    # For `load`, with commas between: tensors or modules that may be left over, mask_token,
    # float16, bfloat16, fields of config.json or preprocessor_config.json that are not followed
    config.allow = ""
    # How positions are resampled for other sizes; -1 and "": as the weights say, or as the original
    # does. Weights that were fine-tuned under transformers: 0.0
    config.interpolate_offset = -1.0
    config.interpolate_antialias = ""  # true | false
    # knn | few_shot | logreg | transfer | linear | linear_cached | finetune | robustness |
    # retrieval | video | segmentation | segmentation_ms | depth | depth_dpt | knn_segmentation |
    # vos, with commas between
    config.protocols = ("knn",)
    # A head that is judged without training, by its file or its released name. For linear and
    # robustness: head.safetensors of a probe, dinov2_*_linear_head.pth, or a folder of
    # transformers. For segmentation and depth: head.safetensors, or dinov2_*_head.pth.
    # "": trained here
    config.head = ""
    config.batch_size = 256  # pictures a pass over all devices of a process. Reference
    config.compute_dtype = "float32"  # float32 | bfloat16 | auto; of the backbone
    config.resize_size = 0  # px of the shorter side; 0: as the weights say
    config.image_size = 0  # px of the centre crop; 0: as the weights say
    # Features of whole splits, kept for the next evaluation; several jobs may share the folder.
    # "": <workdir>/features, or <run>/eval/<step>/features for all data sets of a run
    config.feature_cache = ""

    config.data = _data()
    config.knn = _knn()
    config.few_shot = _few_shot()
    config.logreg = _logreg()
    config.transfer = _transfer()
    config.linear = _linear()
    config.finetune = _finetune()
    config.robustness = _robustness()
    config.retrieval = _retrieval()
    config.video = _video()
    config.segmentation = _segmentation()
    config.depth = _depth()
    config.knn_segmentation = _knn_segmentation()
    config.vos = _vos()
    config.distributed = default.distributed()  # all processes do the same, process 0 writes
    return config


def _data() -> ml_collections.ConfigDict:
    """For checkpoints of our own runs, the run's configuration fills empty fields."""
    data = ml_collections.ConfigDict()
    # A published set in its official layout below data.path, in place of a source: imagenet |
    # imagenet_tfds | inaturalist2018 | inaturalist2021 | places205 | food101 | cifar10 | cifar100 |
    # sun397 | cars | aircraft | voc2007 | dtd | pets | caltech101 | flowers102 | cub200
    # With masks: ade20k | voc2012 | cityscapes | camvid | folder; with depths: nyu | kitti |
    # sunrgbd | folder; videos with masks: davis2017
    data.set = ""
    data.source = ""  # folder | tar | array_record | tfds | openmoji | manifest
    data.path = ""  # file, folder or pattern of the source; root of a published set
    # One path a split, in place of data.path: for list, tar and ArrayRecord files without splits
    data.train_path = ""
    data.val_path = ""  # of the split that chooses hyper-parameters
    data.test_path = ""  # of the split that is judged
    data.train_split = ""  # the labelled bank, or what classifiers are trained on
    # The split that chooses hyper-parameters; "": val/ of a folder with train/, val/ and test/,
    # else 10 % of train (logreg), or test itself (linear, few_shot; the reference does so with
    # ImageNet). Results then say "chosen on test".
    data.val_split = ""
    data.test_split = ""  # the split that is judged; "": test, which may be the folder val/
    data.labels = ""  # auto | folders | none
    # Label files for sources without labels: <name> TAB <class> a line, in any order (a comma, a
    # semicolon or a blank will do), or one class a line in the order of the records. With
    # data.set=imagenet, test_labels is its list of labels.
    data.train_labels = ""
    data.val_labels = ""  # of the split that chooses hyper-parameters
    data.test_labels = ""  # of the split that is judged
    data.cache_dir = ""  # where openmoji is drawn to
    data.workers = 0  # loader processes; 0: in the main process
    data.max_pixels = 100_000_000  # larger pictures count as unreadable
    # How many unreadable pictures (or frames of videos) of a split are left out of the metrics
    data.max_bad = 0
    return data


def _knn() -> ml_collections.ConfigDict:
    knn = ml_collections.ConfigDict()
    knn.ks = (10, 20, 100, 200)  # neighbours that vote. Reference
    knn.temperature = 0.07  # of the vote. Reference
    knn.leave_one_out = False  # judge train by itself, each query without its own record
    return knn


def _few_shot() -> ml_collections.ConfigDict:
    few_shot = ml_collections.ConfigDict()
    few_shot.per_class = (1, 2, 4, 8, 16)  # shots: training pictures of each class
    few_shot.tries = 5  # draws of shots that are averaged
    few_shot.linear_iterations = 500  # training steps of the linear classifiers, 256 pictures each
    return few_shot


def _logreg() -> ml_collections.ConfigDict:
    logreg = ml_collections.ConfigDict()
    # Inverse strengths C of the penalty: 10^linspace(first, last, count). Reference
    logreg.log10_c = (-6.0, 5.0)
    logreg.count = 45  # how many C are tried. Reference
    logreg.max_iterations = 1000  # Newton steps a C; a few dozen are taken
    return logreg


def _transfer() -> ml_collections.ConfigDict:
    transfer = ml_collections.ConfigDict()
    # A folder that holds some or all of the twelve transfer sets, each named as in data.set, as its
    # archive unpacks or as torchvision calls it
    transfer.path = ""
    return transfer


def _linear() -> ml_collections.ConfigDict:
    linear = ml_collections.ConfigDict()
    linear.rates = "code"  # code | paper: the reference's two lists of 13 learning rates
    linear.blocks = (1, 4)  # heads that read cls of so many last blocks; (1,) for finetune.head
    linear.avgpool = (False, True)  # heads without and with the mean patch of the last block
    linear.iterations = 12_500  # Reference: 10 times 1250
    linear.batch_size = 1024  # Reference: 8 GPUs of 128
    linear.seed = 0  # of weights, crops and the order of the pictures
    linear.save_every = 1250  # iterations
    return linear


def _finetune() -> ml_collections.ConfigDict:
    # DeiT III's recipe for ViT-B at 224 px, 20 epochs of ImageNet. Reference: paper table 5
    finetune = ml_collections.ConfigDict()
    finetune.iterations = 50_000  # 20 epochs of ImageNet
    finetune.batch_size = 512  # pictures an iteration, over all processes
    finetune.group_size = 64  # pictures that share a draw of mixing and stochastic depth
    finetune.lr = 1e-5  # peak rate of AdamW, for this batch_size: change both together
    finetune.min_lr = 1e-6  # where the cosine ends
    finetune.warmup_iterations = 12_500  # 5 epochs of ImageNet
    finetune.layerwise_decay = 1.0  # of the rate, from a block to the one below; 1: none
    finetune.weight_decay = 0.1  # of AdamW
    finetune.drop_path = 0.2  # DeiT III: B 0.2, L 0.45, H 0.55
    finetune.smoothing = 0.1  # of labels
    finetune.mixup = 0.8  # alpha of the Beta distribution of shares; 0: no mixup
    finetune.cutmix = 1.0  # alpha of CutMix; 0: none. With both, each group draws one of the two
    finetune.ema = 0.99996  # decay of the averaged weights, which are evaluated
    finetune.avgpool = False  # the head reads the mean patch beside cls
    finetune.head = ""  # linear classifier of 1 block to start with; "": a random one
    finetune.lora_rank = 0  # rank of LoRA factors, trained instead of all weights; 0: all weights
    finetune.lora_alpha = 16.0  # the update is lora_alpha / lora_rank times the factors' product
    finetune.seed = 0  # of the head, crops, mixing, stochastic depth and the order
    finetune.save_every = 1000  # iterations
    return finetune


def _robustness() -> ml_collections.ConfigDict:
    # Paths of ImageNet's variants, "" leaves one out. They judge the linear classifier that was
    # trained on ImageNet.
    robustness = ml_collections.ConfigDict()
    robustness.imagenet_v2 = ""  # the folder that holds 0/ ... 999/, such as matched-frequency
    robustness.imagenet_real = ""  # real.json, the reassessed labels of the validation pictures
    robustness.imagenet_a = ""  # the folder that holds 200 <WordNet id>/
    robustness.imagenet_r = ""  # the folder that holds 200 <WordNet id>/
    robustness.imagenet_sketch = ""  # the folder that holds 1000 <WordNet id>/, or the one above
    robustness.imagenet_c = ""  # the folder of the unpacked tar files, such as noise/ and blur/
    # The classifier; "": config.head, else that of linear or linear_cached of this evaluation
    robustness.head = ""
    return robustness


def _retrieval() -> ml_collections.ConfigDict:
    retrieval = ml_collections.ConfigDict()
    # roxford5k | rparis6k | met | mini_met (Met's queries, and its smaller database) | amstertime
    retrieval.set = ""
    retrieval.path = ""  # the folder of the set, in its official layout, or one above
    # Factors of the picture's side, one pass of features each; their features are averaged, such as
    # (1.0, 0.7071, 1.4142).
    retrieval.scales = (1.0,)
    # Index for Met's nearest neighbours, as faiss.index_factory takes it; "": exact search
    retrieval.faiss_index = ""
    # Share of the exact neighbours that the index must find, 0..1; it searches until it does.
    retrieval.faiss_recall = 0.99
    return retrieval


def _video() -> ml_collections.ConfigDict:
    video = ml_collections.ConfigDict()
    # ucf101 (its first official split) | ucf101_2 | ucf101_3 (the others) | kinetics400 | ssv2
    video.set = ""
    video.path = ""  # the folder of the set, in its official layout, or one above
    # Leaves out videos of Kinetics that are missing; metrics are then not quite comparable.
    video.allow_missing = False
    return video


def _segmentation() -> ml_collections.ConfigDict:
    # A linear head on frozen patches. 0: the set's own recipe, see heads/recipes.py
    segmentation = ml_collections.ConfigDict()
    segmentation.iterations = 0  # ADE20K, VOC 2012 and Cityscapes: 40,000. Reference
    segmentation.batch_size = 0  # pictures an iteration, over all processes. Reference: 16
    segmentation.crop_size = 0  # px; of a training crop and of a window. Reference: 512, ms 640
    segmentation.short_side = 0  # px; of a picture at scale 1. Reference: 512, ms 640
    # Learning rates of heads that are trained together; val, or test where there is none, chooses
    segmentation.rates = (1e-3,)  # of AdamW. Reference
    segmentation.weight_decay = 1e-4  # of AdamW. Reference
    segmentation.warmup_iterations = -1  # -1: 1500, but at most an eighth of all. Reference: 1500
    segmentation.stride = 0  # px between windows; 0: two thirds of a crop, ms: half. Reference
    segmentation.scales = ()  # factors of short_side at test; (): 1, ms: 1 to 3. Reference
    segmentation.flip = (
        "auto"  # auto | true | false; also the mirrored picture; auto: ms. Reference
    )
    segmentation.pictures = 8  # test pictures that results.html shows beside their truth
    segmentation.seed = 0  # of the head, crops, colours and the order
    segmentation.save_every = 1000  # iterations
    return segmentation


def _depth() -> ml_collections.ConfigDict:
    # Heads on frozen patches and cls. 0: the set's own recipe, see heads/recipes.py
    depth = ml_collections.ConfigDict()
    depth.iterations = 0  # NYU, KITTI: 38,400. Reference
    depth.batch_size = 0  # pictures an iteration, over all processes. Reference: 16
    depth.blocks = 1  # 1 | 4; whose features the linear head reads ("lin. 1", "lin. 4"). Reference
    depth.channels = 256  # of the running map of DPT. Reference
    depth.train_px = ()  # height, width of a training crop; (): NYU 416, 544, KITTI 352, 704
    # Weight of the loss of differences between neighbours. Reference: one that is always 0
    depth.gradient = 0.0
    depth.lr = 0.0  # peak rate of AdamW; 0: 1e-4. Reference
    depth.weight_decay = 0.01  # of AdamW. Reference
    depth.warmup_iterations = -1  # -1: 12,800, but at most a third of all. Reference: 12,800
    depth.low = 0.0  # metres; the least depth; 0: 0.001. Reference
    depth.high = 0.0  # metres; the greatest depth; 0: NYU 10, KITTI and SUN RGB-D 80. Reference
    depth.crop = "auto"  # auto | none | nyu_eigen | kitti_eigen | garg; where pictures are judged
    depth.flip = True  # averages the mirrored picture's depth. Reference
    depth.units_per_metre = 0.0  # of a folder's depth files; 0: 1000 (millimetres)
    depth.pictures = 8  # test pictures that results.html shows beside their truth
    depth.seed = 0  # of the head, crops, colours and the order
    depth.save_every = 1000  # iterations
    return depth


def _knn_segmentation() -> ml_collections.ConfigDict:
    # Frozen patches, nothing trained but logistic regression. Reference: CAPI's protocol
    knn = ml_collections.ConfigDict()
    knn.ks = (1, 3, 10, 30)  # neighbours that vote. Reference
    knn.metrics = ("cosine", "l2")  # distances that are tried. Reference
    knn.image_px = 224  # side of the square that a picture is squashed to. Reference
    knn.val_share = 0.1  # of the training pictures, where the set has no val. Reference
    knn.logistic = True  # also logistic regression
    knn.log10_c = (-6.0, 5.0)  # its inverse penalties: 10^linspace(first, last, count). Reference
    knn.count = 8  # how many penalties are tried. Reference
    knn.max_patches = 2_000_000  # most training patches, drawn by whole pictures; others are left
    # Most patches of logistic regression, drawn one by one; it holds each feature in fp64, too
    knn.logistic_patches = 500_000
    knn.pictures = 8  # test pictures that results.html shows beside their truth
    knn.seed = 0  # of the draws
    return knn


def _vos() -> ml_collections.ConfigDict:
    # Label propagation by patches, nothing trained. Reference: DINO's protocol
    vos = ml_collections.ConfigDict()
    vos.split = "val"  # val | train, of DAVIS 2017
    vos.short_side = 480  # px of a frame. Reference
    vos.context = 7  # preceding frames that vote beside the first one. Reference
    vos.radius = 12  # patches, in rows and columns, that may be apart; 0: any. Reference
    vos.top_k = 5  # neighbours that vote for a patch. Reference
    vos.temperature = 0.1  # of their weights. Reference
    vos.videos = 0  # the first so many videos; 0: all
    vos.pictures = 4  # videos that results.html shows
    return vos
