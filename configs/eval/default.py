"""All fields of the evaluations; the other files of this folder name a protocol each.

Command:   python -m dinov2_jax.main --config=configs/eval/default.py
           --config.checkpoint=runs/quickstart --config.protocols=knn,logreg,linear_cached
Hardware:  any; features go over all devices and processes, and are computed once for all protocols
Time:      quick start's model and drawings: k-NN and logistic regression in a minute on 2 CPU cores
Expected:  a table, results.json (numbers, protocol, data, versions) and results.html in the
           workdir, by default <run>/eval/<step>
Own data:  --config.data.source=folder --config.data.path=/labelled, which holds train/<class>/ and
           val/<class>/
Resume:    the same command; finished features and protocols are not computed again
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "eval"
    # A run (its newest step), one of its checkpoints, a released name (list_models()), .pth,
    # Hugging Face directory, timm file or bundle.
    config.checkpoint = ""
    config.which = "teacher"  # teacher | student; of training checkpoints
    config.allow = ""  # of `load`: tensors that may be left over, float16, bfloat16; with commas
    # knn | few_shot | logreg | transfer | linear | linear_cached | finetune | robustness |
    # retrieval | video, with commas between
    config.protocols = ("knn",)
    config.batch_size = 256  # pictures a pass over all devices of a process. Reference
    config.compute_dtype = "float32"  # float32 | bfloat16 | auto; of the backbone
    config.resize_size = 0  # px of the shorter side; 0: as the weights say
    config.image_size = 0  # px of the centre crop; 0: as the weights say
    # Features of whole splits, kept for the next evaluation; "": <workdir>/features
    config.feature_cache = ""

    # Of our own runs, empty fields are taken from the run.
    config.data = ml_collections.ConfigDict()
    # A published set in its official layout below data.path, in place of a source: imagenet |
    # imagenet_tfds | food101 | cifar10 | cifar100 | sun397 | cars | aircraft | voc2007 | dtd | pets
    # | caltech101 | flowers102 | cub200
    config.data.set = ""
    config.data.source = ""  # folder | tar | array_record | tfds | openmoji
    config.data.path = ""
    # Of one split, in place of data.path: for list, tar and ArrayRecord files, which have no splits
    config.data.train_path = ""
    config.data.val_path = ""
    config.data.test_path = ""
    config.data.train_split = ""  # the labelled bank, or what classifiers are trained on
    # Where hyper-parameters are chosen; "": a tenth of train (logreg), or the test split itself
    # (linear, linear_cached; the reference's way with ImageNet's validation set).
    config.data.val_split = ""
    config.data.test_split = ""
    config.data.labels = ""  # auto | folders | none
    # Label files, for sources without labels: one class (name or number) a line, in the order of
    # the records, or <name> TAB <class>. Of data.set=imagenet test_labels, if not where expected.
    config.data.train_labels = ""
    config.data.val_labels = ""
    config.data.test_labels = ""
    config.data.cache_dir = ""  # where openmoji is drawn to
    config.data.workers = 0  # loader processes; 0: in the main process
    config.data.max_pixels = 100_000_000  # greater pictures count as unreadable
    # Unreadable pictures of a split (of videos: frames) that are left out of the figures
    config.data.max_bad = 0

    config.knn = ml_collections.ConfigDict()
    config.knn.ks = (10, 20, 100, 200)  # neighbours that vote. Reference
    config.knn.temperature = 0.07  # of the vote. Reference
    config.knn.leave_one_out = False  # ask the bank about itself, without the asking picture

    config.few_shot = ml_collections.ConfigDict()
    config.few_shot.per_class = (1, 2, 4, 8, 16)  # examples of each class
    config.few_shot.tries = 5  # draws that are averaged
    config.few_shot.linear_iterations = 500  # of the linear classifiers, 256 pictures each

    config.logreg = ml_collections.ConfigDict()
    # Inverse strengths of the penalty: 10^linspace(first, last, count). Reference
    config.logreg.log10_c = (-6.0, 5.0)
    config.logreg.count = 45
    config.logreg.max_iterations = 1000  # Newton steps a C; a few dozen are taken

    # A folder with the twelve transfer sets, or some, in folders of the names of data.set
    config.transfer = ml_collections.ConfigDict()
    config.transfer.path = ""

    config.linear = ml_collections.ConfigDict()
    config.linear.rates = "code"  # code | paper: the reference's two lists of 13 learning rates
    config.linear.iterations = 12_500  # Reference: 10 times 1250
    config.linear.batch_size = 1024  # Reference: 8 GPUs of 128
    config.linear.seed = 0
    config.linear.save_every = 1250  # iterations

    # DeiT III's recipe for ViT-B at 224 px, 20 epochs of ImageNet. Reference: paper table 5
    config.finetune = ml_collections.ConfigDict()
    config.finetune.iterations = 50_000
    config.finetune.batch_size = 512
    config.finetune.group_size = 64  # images that share a draw of mixing and stochastic depth
    config.finetune.lr = 1e-5
    config.finetune.min_lr = 1e-6
    config.finetune.warmup_iterations = 12_500
    config.finetune.layerwise_decay = 1.0  # of the rate, from a block to the one below; 1: none
    config.finetune.weight_decay = 0.1
    config.finetune.drop_path = 0.2  # DeiT III: B 0.2, L 0.45, H 0.55
    config.finetune.smoothing = 0.1  # of labels
    config.finetune.mixup = 0.8
    config.finetune.cutmix = 1.0
    config.finetune.ema = 0.99996  # decay of the averaged weights, which are evaluated
    config.finetune.avgpool = False  # the head reads the mean patch beside cls
    config.finetune.lora_rank = 0  # of low-rank factors in place of all weights; 0: all weights
    config.finetune.lora_alpha = 16.0
    config.finetune.seed = 0
    config.finetune.save_every = 1000  # iterations

    # Paths of ImageNet's variants, for the linear classifier that was trained on ImageNet.
    config.robustness = ml_collections.ConfigDict()
    config.robustness.imagenet_v2 = ""
    config.robustness.imagenet_real = ""  # real.json
    config.robustness.imagenet_a = ""
    config.robustness.imagenet_r = ""
    config.robustness.imagenet_sketch = ""
    config.robustness.imagenet_c = ""
    config.robustness.head = ""  # head.safetensors; "": of linear or linear_cached in the workdir

    config.retrieval = ml_collections.ConfigDict()
    config.retrieval.set = ""  # roxford5k | rparis6k | met | amstertime
    config.retrieval.path = ""
    # Of the sides; several are averaged, such as (1.0, 0.7071, 1.4142), one pass of features each.
    config.retrieval.scales = (1.0,)
    # Of Met's nearest neighbours, as faiss.index_factory takes it; "": exact, on the devices.
    config.retrieval.faiss_index = ""

    config.video = ml_collections.ConfigDict()
    config.video.set = ""  # ucf101 | kinetics400 | ssv2
    config.video.path = ""
    # Leaves out the videos of Kinetics that are no longer to be had; figures then compare less.
    config.video.allow_missing = False

    config.distributed = default.distributed()  # all processes do the same, process 0 writes
    return config
