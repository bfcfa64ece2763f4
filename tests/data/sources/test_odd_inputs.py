"""Inputs that fuzzing found: they raised something else than a sentence, hung, or were misread."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, decode, load_record
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.given import Paths
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.sources.tar import Tar
from dinov2_jax.data.sources.views import View, with_label_file

PICTURE = io.BytesIO()
Image.new("RGB", (24, 16), "red").save(PICTURE, "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PICTURE.getvalue())
    return tmp_path


def labels(folder: Path, content: bytes) -> View:
    path = folder / "labels.txt"
    path.write_bytes(content)
    found = with_label_file(Folder(str(folder)), str(path))
    assert isinstance(found, View)
    return found


@pytest.mark.parametrize(
    "content", [b"caf\xe9\ndog\n", b"a.png\tcaf\xe9\nb.png\tdog\n", b"a\0\nb\n"]
)
def test_a_class_that_is_no_text_is_refused(folder, content):
    with pytest.raises(SourceError, match=r"labels\.txt .* no text in UTF-8"):
        labels(folder, content)


def test_a_label_file_finds_pictures_whose_names_are_no_text(folder):
    os.rename(os.fsencode(folder / "b.png"), os.fsencode(folder) + b"/caf\xe9.png")
    found = labels(folder, b"caf\xe9.png\tdog\na.png\tcat\n")
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1]


def test_one_name_with_two_classes_is_refused(folder):
    with pytest.raises(SourceError, match=r"gives a.png the classes 'cat' and 'dog'"):
        labels(folder, b"a.png\tcat\nb.png\tcat\na.png\tdog\n")
    assert len(labels(folder, b"a.png\tcat\nb.png\tcat\na.png\tcat\n")) == 2


def test_only_line_ends_end_a_label(folder):
    found = labels(folder, "New\u2028York\nRio\u0020\n".encode())
    assert found.class_names == ("New\u2028York", "Rio")


def test_a_view_keeps_the_notes_of_its_source(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
        (folder / split / "a.png").write_bytes(PICTURE.getvalue())
    source = Folder(str(folder), "train")
    assert source.notes and View(source, None, None).notes == source.notes


@pytest.mark.timeout(30)
def test_a_list_that_names_a_pipe_or_a_device_does_not_hang(folder):
    os.mkfifo(folder / "pipe")
    (folder / "list.txt").write_text("a.png\npipe\n/dev/zero\n.\n")
    source = Folder(str(folder / "list.txt"))
    load_record(source, 0, WHOLE_RGB)
    for row in (1, 2, 3):
        with pytest.raises(BadImage):
            load_record(source, row, WHOLE_RGB)


def test_names_that_hold_a_nul(folder):
    (folder / "list.txt").write_bytes(b"a.png\n" * 1000 + b"b\0.png\n")
    with pytest.raises(SourceError, match="neither a folder nor a list"):
        Folder(str(folder / "list.txt"))
    with pytest.raises(BadImage, match="NUL"):
        load_record(Paths(["b\0.png"]), 0, WHOLE_RGB)


def tar_of(path: Path, size: str) -> str:
    """A tar whose only member says that it has so many bytes."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.png")
        member.size, member.pax_headers = len(PICTURE.getvalue()), {"size": size}
        archive.addfile(member, io.BytesIO(PICTURE.getvalue()))
    return str(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", ["-5", "-512", "-1024", "-2048", "-99999", "9" * 30])
def test_a_tar_member_of_an_impossible_size(tmp_path, size):
    with pytest.raises(SourceError, match="no whole tar file"):
        Tar(tar_of(tmp_path / "x.tar", size))


def test_what_tarfile_cannot_take_is_a_damaged_tar(tmp_path):
    sparse = tarfile.TarInfo("a.png")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    content = b"no number\n".ljust(1024, b"x")
    sparse.size = len(content)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(content))
    with pytest.raises(SourceError, match="no whole tar file"):
        Tar(str(tmp_path / "x.tar"))


def npy(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(48)


@pytest.mark.parametrize("shape", ["(-1, 4, 3)", "(4, -1, 3)", "(-4, -4, 3)", "(4, 4, -3)"])
def test_an_array_of_negative_size_is_no_picture(shape):
    assert decode(npy("(4, 4, 3)")).shape == (4, 4, 3)
    with pytest.raises(BadImage, match="no picture"):
        decode(npy(shape))


@pytest.mark.parametrize("raw", [b"\x93NUMPY\x09\x00", b"\x93NUMPY", npy("(4, ")])
def test_a_damaged_npy_header_is_said_to_be_damaged(raw):
    with pytest.raises(BadImage, match=r"header of this .npy file is damaged"):
        decode(raw)


def test_no_picture_of_an_array_has_more_pixels_than_allowed():
    with pytest.raises(BadImage, match="max_pixels"):
        decode(npy("(4, 4, 3)"), DecodeSpec(max_pixels=15))
    assert np.prod(decode(npy("(4, 4, 3)"), DecodeSpec(max_pixels=16)).shape) == 48
