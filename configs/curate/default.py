"""Every field of curation; the other files in this folder start from it and change a few.

Command:   python -m dinov2_jax.main --config=configs/curate/dedup.py --workdir=runs/pool
           --config.data.path=/pictures
Hardware:  one process with all its devices; tables also on a Ray cluster
Time:      --config.curate.dry_run=True estimates it by stage
Expected:  a folder a stage, with stage.json; manifest/ to train on; report/report.html to look at
Resume:    the same command; finished stages are skipped, an interrupted one goes on

Sections and figures of the paper's recipe are those of arXiv 2304.07193, section 3 and appendix A.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "curate"  # what `python -m dinov2_jax.main` does with this configuration
    config.seed = 0  # which pictures calibrate, where k-means starts, which pictures are sampled
    # What describes pictures: a released name, .pth, Hugging Face directory, timm file, run or
    # bundle; "": their pixels, which finds copies but knows no subjects
    config.weights = ""
    config.which = "teacher"  # teacher | student; of training checkpoints
    # Attention heads, if neither the file nor the width tells them; 0: they do
    config.heads = 0
    # For `load`, with commas between: what may be left over or not followed; see configs/embed.py
    config.allow = ""
    # How positions are resampled for other sizes; -1 and "": as the weights say
    config.interpolate_offset = -1.0
    config.interpolate_antialias = ""  # true | false
    config.size = ()  # px of the pictures that the backbone sees, whole patches; (): as it says
    config.compute_dtype = "auto"  # float32 | bfloat16 | auto (bfloat16 on GPU and TPU)
    config.batch_size = 256  # pictures per pass over all devices

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"  # folder | tar | array_record | tfds | openmoji | manifest
    # The pool: a folder or list file | tar files | ArrayRecord files | TFDS name | "" for openmoji
    config.data.path = ""
    config.data.split = "all"  # of a folder with train/ and val/, tfds and openmoji
    config.data.workers = 0  # loader processes; 0: a thread of the main process
    config.data.max_pixels = 100_000_000  # larger pictures count as unreadable
    config.data.cache_dir = ""  # where openmoji is drawn; "": the user's cache directory

    config.store = ml_collections.ConfigDict()  # see configs/embed.py
    config.store.format = "npy"  # npy: the stages read features through memory maps
    config.store.dtype = "float16"  # float16 | float32
    config.store.shard_rows = 0  # rows that are stored at a time; 0: about a 64th of all
    config.curate = _curate()
    config.distributed = default.distributed()
    return config


def _curate() -> ml_collections.ConfigDict:
    curate = ml_collections.ConfigDict()
    # What to do: pictures, embed, calibrate, dedup, exclude, cluster, retrieve, sample, manifest,
    # report. What one of them needs is done as well
    curate.stages = ("dedup", "manifest", "report")
    curate.engine = "local"  # of the tables: local | ray (needs dinov2_jax[curation-cluster])
    # For ray: auto (RAY_ADDRESS, or a new one on this machine) | ray://host:port
    curate.cluster = "auto"
    # Evaluation sets that must not be trained on, as name:path, or name:tar:path and the like
    curate.references = ()
    curate.queries = ()  # sets by which pictures are retrieved, written in the same way
    curate.target = 0  # pictures of the result; 0: all that are left
    curate.dry_run = False  # print rows, sizes, methods and hours, and stop
    curate.plan_rows = 0  # pictures that the dry run plans for; 0: those of data.path

    curate.calibrate = ml_collections.ConfigDict()
    # Pictures of which copies are made: half to fit the whitening, half to choose thresholds
    curate.calibrate.pictures = 1000
    curate.calibrate.width = 128  # numbers of a whitened descriptor
    # Largest share of pictures that may be linked to an unrelated one, within the pool
    curate.calibrate.false_share = 0.01
    # The same against references: to lose pictures is cheap, to train on a test set is not
    curate.calibrate.reference_false_share = 0.1

    curate.dedup = ml_collections.ConfigDict()
    # Most bits of 64 in which the hashes of copies may differ; the calibration takes fewer where
    # these would link too many pictures. -1: compare no hashes
    curate.dedup.hash_bits = 12
    # Least cosine of copies; 0.0: what the calibration chooses. Without weights, edges of
    # thumbnails are laid over each other then. The paper: 0.6, with SSCD
    curate.dedup.threshold = 0.0
    # Largest component, as a share of the pool; a larger one is a chain of false links
    curate.dedup.max_component = 0.01

    curate.exclude = ml_collections.ConfigDict()
    curate.exclude.hash_bits = 15  # as dedup.hash_bits, against references
    curate.exclude.threshold = 0.0  # as dedup.threshold. The paper: 0.45, with SSCD

    curate.kmeans = ml_collections.ConfigDict()
    curate.kmeans.sizes = (1000,)  # clusters of each level, the finest first. The paper: 100,000
    curate.kmeans.iterations = 20  # of k-means on each level
    # Fit levels again to the pictures nearest to their centres: the finest once, others ten times.
    # Vo et al. 2024
    curate.kmeans.resample = True

    curate.retrieve = ml_collections.ConfigDict()
    # sample: the nearest pictures of each query | cluster: pictures of the queries' clusters | both
    curate.retrieve.how = "sample"
    curate.retrieve.neighbours = 4  # pictures a query. The paper: 4, or 32 for small sets
    curate.retrieve.more_than = 3  # queries that a cluster must exceed. The paper
    curate.retrieve.per_cluster = 10_000  # pictures of a cluster. The paper
    curate.retrieve.per_set = 1_000_000  # pictures of a query set. The paper
    return curate
