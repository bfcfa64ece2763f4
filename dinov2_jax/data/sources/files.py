"""Files of pictures: their names in little memory, which files may be pictures, and reading one."""

import glob
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from dinov2_jax.data.sources.mapped import Mapped
from dinov2_jax.data.sources.source import SourceError, Unlabelled, not_found

# A camera's largest picture has 0.5 GB; anything above is a disk image or an archive.
MAX_FILE_BYTES = 1 << 29
# A file is judged by its content when it is read, not by its name. Only what certainly is no
# picture is left out here, so that it does not count as a bad record.
_NOT_PICTURES = frozenset(
    """
    .txt .md .rst .json .jsonl .csv .tsv .html .htm .xml .yaml .yml .toml .ini .cfg .log .pdf .doc
    .docx .xls .xlsx .ppt .pptx .py .sh .js .css .svg .ico .zip .tar .gz .tgz .bz2 .xz .zst .7z
    .rar .db .sqlite .mp4 .m4v .mov .avi .mkv .webm .mp3 .wav .flac .npy .npz .pt .pth .mat .pkl
    .h5 .hdf5 .parquet .array_record .tfrecord .xmp .thm .aae .part .tmp .cls
    """.split()  # noqa: SIM905
)

_PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
    ".pgm", ".jp2", ".avif",
)  # fmt: skip
# Folders that systems and unpackers leave among pictures. They hold thumbnails and remains.
STRAY_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN"})


class Names:
    """Many strings in one block of bytes: 14 million paths cost their characters, not objects.

    Loader workers share the block.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        self._ends = Mapped(np.cumsum(lengths))
        self._text = Mapped(np.frombuffer(b"".join(names), np.uint8))

    def __len__(self) -> int:
        return len(self._ends.array)

    def __getitem__(self, index: int) -> str:
        ends = self._ends.array
        start = ends[index - 1] if index else 0
        return os.fsdecode(self._text.array[start : ends[index]].tobytes())

    def digest(self) -> str:
        """Hash of all names in their order; takes a second for a gigabyte."""
        digest = hashlib.blake2b(self._ends.array.data, digest_size=16)
        digest.update(self._text.array.data)
        return digest.hexdigest()


class NamedFiles(Unlabelled):
    """Files with names relative to the folder `root`; a file is read when it is indexed."""

    def __init__(self, root: str, names: Sequence[bytes]) -> None:
        self._root, self._names = root, Names(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        return read_picture(self.path(index))

    def name(self, index: int) -> str:
        """The path relative to the folder."""
        return self._names[index]

    def names_digest(self) -> str:
        """Hash of all names; where the folder lies does not count."""
        return self._names.digest()

    def path(self, index: int) -> str:
        """The whole path."""
        return os.path.join(self._root, self._names[index])


def may_be_picture(name: bytes) -> bool:
    """Whether a file of this name is read at all."""
    return os.path.splitext(os.fsdecode(name))[1].lower() not in _NOT_PICTURES


def is_called_picture(name: str) -> bool:
    """Whether a name has one of the usual endings of pictures."""
    return name.lower().endswith(_PICTURES)


def read_picture(path: str) -> bytes:
    """The content of a picture file. Raises OSError where it cannot be read or is too large."""
    with open_regular(path) as file:
        check_bytes(os.fstat(file.fileno()).st_size)
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Opens a file. Raises OSError for a pipe or device, from which reading may never end."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except ValueError as error:
        raise OSError("the name holds a NUL character") from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("neither a file nor a link to one")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer


def check_bytes(size_bytes: int) -> None:
    """Raises OSError for a size that no picture has."""
    if size_bytes > MAX_FILE_BYTES:
        raise OSError(f"more than {MAX_FILE_BYTES} bytes, too large for a picture")


def find_files(path: str, pattern: str) -> list[str]:
    """The files that `path` names, sorted: itself, a glob, or those in a folder like `pattern`.

    In a glob, braces hold alternatives or a range, as for WebDataset: {train,more}-{000..012}.tar.

    Raises SourceError for a folder without such a file, FileNotFoundError where nothing is there.
    """
    if os.path.isfile(path):
        return [path]
    folder = os.path.isdir(path)
    globs = [os.path.join(glob.escape(path), pattern)] if folder else list(_without_braces(path))
    found = {one: glob.glob(one) for one in globs}
    files = sorted(itertools.chain(*found.values()))
    missing = [one for one, matching in found.items() if not matching]
    if files and missing:
        raise SourceError(
            f"data.path={path} names {len(globs)} files, of which {len(missing)} do not exist, "
            f"such as {missing[0]}"
        )
    if folder and not files:
        raise SourceError(f"data.path={path} holds no {pattern.rstrip('*')} file")
    if not files:
        raise not_found(path)
    return files


def _without_braces(pattern: str) -> Iterator[str]:
    """Every string that a pattern with braces stands for."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        options = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    else:
        options = braces[1].split(",")
    for option in options:
        yield from _without_braces(pattern[: braces.start()] + option + pattern[braces.end() :])
