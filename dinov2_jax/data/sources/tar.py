"""Pictures in tar files, read in place: nothing is unpacked."""

import array
import hashlib
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from dinov2_jax.data.sources.files import (
    Names,
    check_bytes,
    find_files,
    may_be_picture,
    open_regular,
)
from dinov2_jax.data.sources.mapped import Mapped
from dinov2_jax.data.sources.source import SourceError, Unlabelled

_BLOCK = 512  # bytes of a header; contents are filled up to a multiple
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
        links, names, places = list[str](), list[bytes](), array.array("q")
        for number, file in enumerate(self._files):
            for name, start, size in _members(file, links):
                names.append(name)
                places.extend((number, start, size))
        if not names:
            raise SourceError(f"data.path={path} holds no picture")
        if links:
            self.notes = (f"{path}: {len(links)} links are left out, such as {links[0]}",)
        self._names = Names(names)
        self._places = Mapped(np.array(places).reshape(-1, 3))  # file, first byte, bytes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        number, start, size = self._places.array[index].tolist()
        check_bytes(size)
        # Opened anew each time: workers on any number of threads then share no position.
        with open_regular(self._files[number]) as file:
            file.seek(start)
            return file.read(size)

    def name(self, index: int) -> str:
        """`file.tar:member`."""
        number = int(self._places.array[index, 0])
        return f"{os.path.basename(self._files[number])}:{self._names[index]}"

    def names_digest(self) -> str:
        """Hash of all names and sizes; where the files lie does not count."""
        files = "\n".join(map(os.path.basename, self._files))
        digest = hashlib.blake2b(
            f"{self._names.digest()}\n{files}".encode("utf-8", "surrogateescape")
        )
        digest.update(np.ascontiguousarray(self._places.array[:, ::2]).data)  # file, bytes
        return digest.hexdigest()


def _members(path: str, links: list[str]) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, bytes) of every picture in a tar file; `links` gets the names of links."""
    with open_regular(path) as file:
        start = file.read(6)
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise SourceError(
                f"data.path={path} is compressed by {name}, so that no picture can be read without "
                "all before it; decompress it first (compression hardly makes pictures smaller)"
            )
    with open_regular(path) as file:
        end_of_file, offset = os.fstat(file.fileno()).st_size, 0
        while offset is not None:
            try:
                with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
                    for member in archive:
                        if member.size < 0:  # tarfile would never come to an end
                            raise tarfile.ReadError("a member of negative size")
                        if member.issym() or member.islnk():
                            links.append(f"{os.path.basename(path)}:{member.name}")
                        elif _is_picture(member):
                            if member.offset_data + member.size > end_of_file:
                                raise tarfile.ReadError("unexpected end of data")
                            yield os.fsencode(member.name), member.offset_data, member.size
                        archive.members = []  # else it keeps one object a picture
                    end = archive.offset
            except OSError:
                raise
            except Exception as error:  # tarfile passes on what int and struct raise
                raise _damaged(path, file.tell(), str(error)) from error
            offset = _next_archive(file, path, end)


def _is_picture(member: tarfile.TarInfo) -> bool:
    name = os.fsencode(member.name)
    hidden = any(part[:1] == b"." for part in name.removeprefix(b"./").split(b"/"))
    return member.isreg() and not member.issparse() and not hidden and may_be_picture(name)


def _next_archive(file: BinaryIO, path: str, end: int) -> int | None:
    """Where the archive starts that `cat` joined behind the one that ends at `end`; None without.

    tarfile takes the end of the file and a damaged header for the end of the archive. An archive
    really ends with blocks of zeros.
    """
    file.seek(end)
    if file.read(_BLOCK).strip(b"\0"):
        raise _damaged(path, end, "damaged header")
    if file.tell() == end:
        raise _damaged(path, end, "no end mark")
    while chunk := file.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            start = (file.tell() - len(rest)) // _BLOCK * _BLOCK
            file.seek(start)
            return start
    return None


def _damaged(path: str, offset: int, reason: str) -> SourceError:
    return SourceError(
        f"data.path={path} is no whole tar file ({reason} at byte {offset:,}); copy it again, or "
        "extract with `tar -xf` what can still be read"
    )
