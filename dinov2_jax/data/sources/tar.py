"""Pictures in tar files, read in place: nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator

import numpy as np

from dinov2_jax.data.sources.files import Names, check_bytes, find_files, may_be_picture
from dinov2_jax.data.sources.source import SourceError, Unlabelled

# First bytes of the compressions that tar files come in.
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_COMPRESSED = {_GZIP: "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", _ZSTD: "zstd"}


class Tar(Unlabelled):
    """All pictures in plain tar files, in the order of the files' names and of their members.

    `path` is a file, a glob or a folder of *.tar files; there are no labels or splits. Opening
    reads the headers once; from then on a picture is one read at its known place. Members whose
    names say that they are no pictures (the .json and .cls of WebDataset) are skipped, as in
    folders.
    """

    def __init__(self, path: str) -> None:
        self._files = list(map(os.path.abspath, find_files(path, "*.tar")))
        members = [(number, *m) for number, file in enumerate(self._files) for m in _members(file)]
        if not members:
            raise SourceError(f"data.path={path} holds no picture")
        numbers, names, starts, sizes = zip(*members, strict=True)
        self._file = np.array(numbers, np.int32)
        self._names = Names(names)
        self._start, self._size = np.array(starts, np.int64), np.array(sizes, np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        size = int(self._size[index])
        check_bytes(size)
        # Opened anew each time: workers on any number of threads then share no position.
        with open(self._files[self._file[index]], "rb") as file:
            file.seek(int(self._start[index]))
            return file.read(size)

    def name(self, index: int) -> str:
        """`file.tar:member`."""
        return f"{os.path.basename(self._files[self._file[index]])}:{self._names[index]}"


def _members(path: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, bytes) of every picture in a tar file."""
    with open(path, "rb") as file:
        start = file.read(6)
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise SourceError(
                f"data.path={path} is compressed by {name}, so that no picture can be read without "
                "all before it; decompress it first (compression hardly makes pictures smaller)"
            )
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as archive:
            for member in archive:
                name = os.fsencode(member.name)
                hidden = os.path.basename(name).startswith(b".")
                if member.isreg() and not member.issparse() and not hidden and may_be_picture(name):
                    yield name, member.offset_data, member.size
                archive.members = []  # else it keeps one object a picture
    except tarfile.TarError as error:
        message = f"data.path={path} is no tar file, or ends too early ({error}); copy it again"
        raise SourceError(message) from error
