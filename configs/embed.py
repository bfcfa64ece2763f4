"""Features of any number of pictures, to Parquet files or .npy memory maps.

Command:   python -m dinov2_jax.main --config=configs/embed.py --config.weights=runs/quickstart
           --config.data.source=folder --config.data.path=/pictures --workdir=features/pictures
Hardware:  any; batches go over all devices of a process, pictures over all processes
Time:      the quick start's model on 2 CPU cores: 5,000 small pictures in 7 s, 877 a second
Expected:  manifest.json (settings, columns, files), names.txt (line i + 1: the picture of row i),
           unreadable.txt (if any), and features-*.parquet or <column>.npy
Resume:    the same command; also with another batch size, other devices or processes

Every picture has a row, in the order of names.txt. One that cannot be read has NaN in all columns
and False in "readable". A changed setting, other weights or other names of pictures are refused;
a file that was changed under the same name is not noticed.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "embed"
    # A released name (list_models()), .pth, Hugging Face directory, timm file, our run or bundle.
    config.weights = ""
    config.which = "teacher"  # teacher | student; of training checkpoints
    config.allow = ""  # of `load`: tensors that may be left over, float16, bfloat16; with commas

    # cls [D] | registers [R, D] | mean_patch [D] | patches [P, D], with commas between
    config.features = ("cls",)
    # Blocks, from the end if negative. Of several, columns are called cls_block_5, ...
    config.layers = (-1,)
    config.norm = True  # after the final norm (of any block), or before it

    # center_crop: what the weights expect; shorter side, then the central square
    # resize: to two sides exactly; or the shorter side, and the longer in proportion up to 2:1
    # pad: the longer side, the shorter in proportion, filled up to a whole patch
    # Pictures of one size are computed together, each size by a program of its own (pad: at most
    # 2 S / patch - 1 sizes, compiled when they are met), so no attention goes to empty patches. Of
    # patches, places that a picture does not reach are NaN, and False in the column "mask".
    config.policy = "center_crop"
    # px, whole patches: (S,), or (H, W) for resize; (): as the weights say
    config.size = ()
    config.compute_dtype = "float32"  # float32 | bfloat16 | auto (bfloat16 on GPU and TPU)
    config.batch_size = 256  # pictures a pass over all devices of a process, rounded up to these

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"  # folder | tar | array_record | tfds | openmoji
    # A folder or list file | tar files | ArrayRecord files | TFDS name | "" for openmoji
    config.data.path = ""
    config.data.split = "all"  # of folders with train/ and val/, tfds and openmoji
    config.data.workers = 0  # loader processes; 0: a thread of the main process
    config.data.max_pixels = 100_000_000  # greater pictures count as unreadable
    config.data.cache_dir = ""  # where openmoji is drawn to; "": the user's cache directory

    config.store = ml_collections.ConfigDict()
    config.store.format = "parquet"  # parquet (needs pyarrow) | npy: a memory map a column
    config.store.dtype = "float32"  # float32 | float16
    # Rows between two points that a kill goes back to; 0: about a 64th of all, 64 to 8192 rows and
    # 256 MB at most.
    config.store.shard_rows = 0
    # Each process takes its own run of rows; all need the same storage for --workdir.
    config.distributed = default.distributed()
    return config
