"""Pictures of what a backbone sees: PCA colours, matches, attention, neighbours, a map of a folder.

Command:   python -m dinov2_jax.main --config=configs/visualize.py --config.weights=runs/quickstart
           --config.data.path=/pictures --workdir=runs/pictures
Hardware:  any; a ViT-S or B on 2 CPU cores, larger ones better on a GPU
Time:      six photographs of 224 px with the quick start's model: 7 s on 2 CPU cores
Expected:  pictures.html in the run directory, one file that needs no network, and the same pictures
           as PNG; parts of one object have like colours in all pictures of the PCA if the weights
           are good
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "visualize"
    # A name of `list_models()` or the path of released weights, a run, a checkpoint or a bundle
    config.weights = ""
    config.which = "teacher"  # teacher | student, of a training checkpoint
    config.compute_dtype = "auto"  # auto: bfloat16 on GPU and TPU, float32 on CPU | float32 | ...

    # PCA, matches and attention are drawn of few pictures: so many, evenly spread over the folder
    config.pictures = 6
    # ... or these: names as in the folder, separated by commas. Several pictures of like objects
    # show most: the PCA is computed over all of them together.
    config.names = ""
    # px of the shorter side, a multiple of the patch (14 or 16: 448 is one of both). Larger gives
    # finer maps, at a cost that grows with its fourth power in the attention
    config.image_px = 448
    # Whose tokens (after the final norm) and attention are shown; -1: the last block, 0: the first
    config.block = -1

    # Neighbours and the map use so many pictures of the folder, evenly spread; 0: neither is drawn
    config.folder_pictures = 400
    config.batch_size = 32  # of those pictures, a forward pass

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"  # folder | array_record | tfds | openmoji
    config.data.path = ""  # a folder or list file | ArrayRecord files | TFDS name | "" for openmoji
    config.data.split = "all"  # of folders with train/ and val/, tfds and openmoji
    config.data.max_pixels = 100_000_000  # greater pictures are left out
    config.data.cache_dir = ""  # where openmoji is drawn to; "": the user's cache directory

    config.pca = ml_collections.ConfigDict()
    # Patches are foreground whose first component lies so many standard deviations above its mean.
    # Paper, section 7.6: positive values, that is 0
    config.pca.threshold = 0.0
    # auto: the sign for which the pictures' edges are background | high, low: choose it by hand
    config.pca.side = "auto"

    config.matching = ml_collections.ConfigDict()
    # Pairs of pictures, those first whose cls features are most alike; 0: none
    config.matching.pairs = 3
    config.matching.lines = 24  # a pair at most, the most similar patches first
    config.matching.spacing = 2  # patches between the ends of two lines at least; 1: any
    config.matching.foreground = True  # match patches of the PCA's foreground only

    config.attention = ml_collections.ConfigDict()
    config.attention.pictures = 3  # the first of the pictures; 0: none

    config.neighbours = ml_collections.ConfigDict()
    config.neighbours.k = 6  # most similar pictures of the folder, the picture itself left out
    return config
