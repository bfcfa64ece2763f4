"""Opens a source by the values of `config.data`."""

import functools
import os

from dinov2_jax.config.files import local_path
from dinov2_jax.data.sources.array_record import ArrayRecord
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.manifest import Manifest
from dinov2_jax.data.sources.openmoji import Openmoji
from dinov2_jax.data.sources.source import NoSplitError, Source, SourceError, check_name
from dinov2_jax.data.sources.splits import check_split
from dinov2_jax.data.sources.tar import Tar
from dinov2_jax.data.sources.tfds import Tfds

KINDS = ("folder", "tar", "array_record", "tfds", "openmoji", "manifest")
LABELS = ("auto", "folders", "none")


def open_source(
    kind: str, path: str, split: str = "train", labels: str = "none", cache_dir: str | None = None
) -> Source:
    """Opens a source by its config values.

    Args:
      kind: one of KINDS.
      path: a folder or a text file with one path a line; tar or ArrayRecord file, glob or folder;
        TFDS name, name@data_dir or folder of a prepared data set; folder that a curation wrote;
        unused for openmoji.
      split: "train", "validation", "test" or "all"; any TFDS split expression for tfds.
      labels: the classes of a folder. "folders": the first directory below `path`; "auto": the
        same, if every picture lies in one of two or more directories; "none". openmoji and TFDS
        have labels of their own, a manifest those of its sources.
      cache_dir: where openmoji is drawn to.

    Raises:
      SourceError: unknown kind, labels or split, or no picture.
      NoSplitError: the source is not divided.
      FileNotFoundError: `path` does not exist.
    """
    check_name("data.source", kind, KINDS)
    check_name("labels", labels, LABELS)
    local_path(path, "data.path")
    path = os.path.expanduser(path)  # a shell leaves the ~ of --config.data.path=~/pictures
    if kind == "openmoji":
        return Openmoji(split, cache_dir)
    if not path:
        raise SourceError(f"data.source={kind!r} needs data.path; set --config.data.path=...")
    if kind == "folder":
        return Folder(path, split, labels)
    if kind == "tfds":
        return Tfds(path, split)
    if check_split(split) not in ("train", "all"):
        raise NoSplitError(
            f"data.source={kind!r} has no splits, so {path} has no {split!r}; give the files of "
            "that split a path of their own"
        )
    if kind == "manifest":
        return Manifest(path, labels, functools.partial(open_source, cache_dir=cache_dir))
    return Tar(path) if kind == "tar" else ArrayRecord(path)
