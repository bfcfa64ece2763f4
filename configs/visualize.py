"""Pictures of what a backbone sees: PCA colours, matches, attention, neighbours, classes, depth.

Command:   python -m dinov2_jax.main --config=configs/visualize.py --config.weights=runs/quickstart
           --config.data.path=/pictures --workdir=runs/pictures
Hardware:  any; a ViT-S or B on 2 CPU cores, larger ones better on a GPU
Time:      seconds for the quick start's model and six pictures on 2 CPU cores
Expected:  pictures.html in the run directory, one file that needs no network, and the same pictures
           as PNG. With good weights, the same parts of an object have similar PCA colours in all
           pictures.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "visualize"  # what `python -m dinov2_jax.main` does with this configuration
    # A name of `list_models()` or the path of released weights, a run, a checkpoint or a bundle
    config.weights = ""
    config.which = "teacher"  # teacher | student, of a training checkpoint
    # Attention heads, if neither the file nor the width tells them; 0: they do
    config.heads = 0
    # For `load`, with commas between: tensors or modules that may be left over, mask_token,
    # float16, bfloat16, fields of config.json or preprocessor_config.json that are not followed
    config.allow = ""
    # How positions are resampled for other sizes; -1 and "": as the weights say, or as the original
    # does. Weights that were fine-tuned under transformers: 0.0
    config.interpolate_offset = -1.0
    config.interpolate_antialias = ""  # true | false
    config.compute_dtype = "auto"  # auto: bfloat16 on GPU and TPU, float32 on CPU | float32 | ...

    # Number of pictures for PCA, matches and attention, evenly spread over the folder
    config.pictures = 6
    # Or their names in the folder, separated by commas. Works best with several pictures of similar
    # objects, because the PCA is computed over all of them together.
    config.names = ""
    # px of the shorter side, a multiple of the patch (448 is one of 14 and 16). Larger gives finer
    # maps; the cost of attention grows with the fourth power
    config.image_px = 448
    # Block whose tokens (after the final norm) and attention are shown; -1: the last, 0: the first
    config.block = -1

    # Pictures of the folder for neighbours and the map, evenly spread; 0: draw neither
    config.folder_pictures = 400
    config.batch_size = 32  # pictures of the folder per forward pass

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"  # folder | tar | array_record | tfds | openmoji | manifest
    # A folder or list file | tar files | ArrayRecord files | TFDS name | "" for openmoji | the
    # folder of a manifest
    config.data.path = ""
    config.data.split = "all"  # of a folder with train/ and val/, tfds and openmoji
    config.data.max_pixels = 100_000_000  # larger pictures are skipped
    config.data.cache_dir = ""  # where openmoji is drawn; "": the user's cache directory

    config.pca = ml_collections.ConfigDict()
    # A patch is foreground if its first component lies more than so many standard deviations above
    # the mean. Paper, section 7.6: positive values, that is 0
    config.pca.threshold = 0.0
    # auto: the sign that makes the edges of the pictures background | high, low: choose by hand
    config.pca.side = "auto"

    config.matching = ml_collections.ConfigDict()
    # Number of pairs of pictures, those with the most similar cls features first; 0: none
    config.matching.pairs = 3
    config.matching.lines = 24  # at most per pair, the most similar patches first
    config.matching.spacing = 2  # patches, least distance between the ends of two lines
    config.matching.foreground = True  # True: match only patches of the PCA's foreground

    config.attention = ml_collections.ConfigDict()
    config.attention.pictures = 3  # attention is drawn for the first so many; 0: none

    config.segmentation = ml_collections.ConfigDict()
    # A head that predicts the class of every pixel: a file that was saved here, a released .pth,
    # or its name, such as dinov2_vits14_ade20k_linear; "": none
    config.segmentation.head = ""
    config.depth = ml_collections.ConfigDict()
    # A head that predicts the depth of every pixel, such as dinov2_vits14_nyu_dpt; "": none
    config.depth.head = ""
    # metres; greatest depth of a head whose file does not tell it (NYU 10, KITTI 80); 0: it does
    config.depth.high = 0.0
    config.depth.low = 0.001  # metres; the least depth, read where depth.high is given

    config.neighbours = ml_collections.ConfigDict()
    config.neighbours.k = 6  # neighbours per picture; the picture itself is excluded
    return config
