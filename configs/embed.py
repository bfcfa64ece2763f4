"""Features of any number of pictures, to Parquet files or .npy memory maps.

Command:   python -m dinov2_jax.main --config=configs/embed.py --config.weights=runs/quickstart
           --config.data.source=folder --config.data.path=/pictures --workdir=features/pictures
Hardware:  any; batches go over all devices of a process, pictures over all processes
Time:      the quick start's model reads about 900 small pictures per second on 2 CPU cores
Expected:  manifest.json (settings, columns, files), names.txt (line i + 1: the picture of row i),
           unreadable.txt (if any), and features-*.parquet or <column>.npy
Resume:    the same command; also with another batch size, other devices or processes

Every picture has a row, in the order of names.txt. A picture that cannot be read has NaN in all
columns and False in "readable". To resume, settings, weights and names of the pictures must be the
same as before. A file that changed under the same name is not noticed.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "embed"  # what `python -m dinov2_jax.main` does with this configuration
    # A released name (list_models()), .pth, Hugging Face directory, timm file, our run or bundle.
    config.weights = ""
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

    # cls [D] | registers [R, D] | mean_patch [D] | patches [P, D], separated by commas
    config.features = ("cls",)
    # Blocks, counted from the end if negative. With several, columns are called cls_block_5, ...
    config.layers = (-1,)
    config.norm = True  # apply the final norm, to any block

    # center_crop: what the weights expect; shorter side, then the central square
    # resize: to two sides exactly; or the shorter side, and the longer in proportion up to 2:1
    # pad: the longer side, the shorter in proportion, filled up to a whole patch
    # Pictures of one size are computed together by a program for this size (pad: at most
    # 2 S / patch - 1 programs, each compiled when first needed), so no attention goes to empty
    # patches. Patches outside a picture are NaN, and False in the column "mask".
    config.policy = "center_crop"
    # px, whole patches: (S,), or (H, W) for resize; (): as the weights say
    config.size = ()
    config.compute_dtype = "float32"  # float32 | bfloat16 | auto (bfloat16 on GPU and TPU)
    config.batch_size = 256  # pictures per pass over all devices of a process, a multiple of them

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"  # folder | tar | array_record | tfds | openmoji | manifest
    # A folder or list file | tar files | ArrayRecord files | TFDS name | "" for openmoji | the
    # folder of a manifest
    config.data.path = ""
    config.data.split = "all"  # of a folder with train/ and val/, tfds and openmoji
    config.data.workers = 0  # loader processes; 0: a thread of the main process
    config.data.max_pixels = 100_000_000  # larger pictures count as unreadable
    config.data.cache_dir = ""  # where openmoji is drawn; "": the user's cache directory

    config.store = ml_collections.ConfigDict()
    config.store.format = "parquet"  # parquet (needs pyarrow) | npy: one memory map per column
    config.store.dtype = "float32"  # float32 | float16
    # Rows that are stored at a time; a killed command loses at most so many. 0: about a 64th of
    # all, 64 to 8192 rows and at most 256 MB.
    config.store.shard_rows = 0
    # Each process computes its own rows; all need the same storage for --workdir.
    config.distributed = default.distributed()
    return config
