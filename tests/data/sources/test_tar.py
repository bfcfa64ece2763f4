"""Tar files: random access, and sentences about those that do not allow it."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError


def write_tar(path: Path, names: list[str], mode: str = "w") -> dict[str, bytes]:
    """Members whose red says their number."""
    contents = {}
    with tarfile.open(path, mode) as archive:
        for number, name in enumerate(names):
            file = io.BytesIO()
            Image.new("RGB", (9, 7), (number, 0, 0)).save(file, "PNG")
            contents[name] = file.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(contents[name])
            archive.addfile(member, io.BytesIO(contents[name]))
    return contents


def test_members_in_order_by_random_access(tmp_path):
    long = "deep/" * 40 + "ünïcødé.png"  # more than a header has room for
    contents = write_tar(tmp_path / "a.tar", ["b.png", "a.json", "x/a.jpg", ".hidden.png", long])
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        archive.addfile(link)
    source = open_source("tar", str(tmp_path / "a.tar"))
    assert [source.name(i) for i in range(len(source))] == [
        f"a.tar:{name}" for name in ("b.png", "x/a.jpg", long)
    ]
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in (2, 0, 1)] == [contents[n] for n in (long, "b.png", "x/a.jpg")]
    assert decode(source[1])[0, 0, 0] == 2


def test_a_folder_of_tars_is_one_source(tmp_path):
    write_tar(tmp_path / "1.tar", ["a.png", "b.png"])
    write_tar(tmp_path / "0.tar", ["c.png"])
    for path in (tmp_path, tmp_path / "*.tar"):
        source = open_source("tar", str(path))
        assert [source.name(i) for i in range(3)] == ["0.tar:c.png", "1.tar:a.png", "1.tar:b.png"]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_is_refused(tmp_path, kind):
    write_tar(tmp_path / "a.tar", ["a.png"], f"w:{kind}")
    with pytest.raises(SourceError, match=r"compressed by .*decompress it first"):
        open_source("tar", str(tmp_path / "a.tar"))


def test_what_is_no_tar(tmp_path):
    contents = write_tar(tmp_path / "a.tar", ["a.png", "b.png"])
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(raw[: 512 + len(contents["a.png"]) // 2])
    (tmp_path / "text.tar").write_text("no tar " * 200)
    write_tar(tmp_path / "none.tar", ["a.json"])
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("cut.tar", "unexpected end of data"),
        ("text.tar", "no whole tar file"),
        ("none.tar", "holds no picture"),
        ("empty", r"holds no \*.tar file"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source("tar", str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"did you mean .*a\.tar"):
        open_source("tar", str(tmp_path / "aa.tar"))


def whole_tar(path, names):
    write_tar(path, names)
    return path.read_bytes()


def test_an_archive_that_does_not_end_well_is_refused(tmp_path):
    """tarfile takes the end of a file, and any bad header but the first, for the archive's end."""
    raw = whole_tar(tmp_path / "a.tar", ["a.png", "b.png", "c.png"])
    with tarfile.open(tmp_path / "a.tar") as archive:
        third = archive.getmember("c.png").offset
    damaged = bytearray(raw)
    damaged[third + 100 : third + 148] = b"\xff" * 48
    zeroed = raw[:third] + bytes(512) + raw[third + 512 :]
    for content in (raw[:third], raw[: third + 200], bytes(damaged), zeroed):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(
            SourceError, match=r"no whole tar file .* at byte [\d,]+\); copy it again"
        ):
            open_source("tar", str(tmp_path / "a.tar"))


def test_joined_archives_are_read_on(tmp_path):
    first = whole_tar(tmp_path / "a.tar", ["a.png", "b.png"])
    second = whole_tar(tmp_path / "a.tar", ["c.png"])
    (tmp_path / "a.tar").write_bytes(first + second + bytes(2048) + second)
    source = open_source("tar", str(tmp_path / "a.tar"))
    assert [source.name(row).partition(":")[2] for row in range(len(source))] == [
        "a.png", "b.png", "c.png", "c.png",
    ]  # fmt: skip
    assert source[2] == source[3]
    assert decode(source[2]).shape == decode(source[0]).shape


def test_braces_as_webdataset_writes_them(tmp_path):
    for number in range(8, 12):
        write_tar(tmp_path / f"shard-{number:03}.tar", [f"{number}.png"])
    write_tar(tmp_path / "more.tar", ["m.png"])
    source = open_source("tar", f"{tmp_path}/{{shard-{{008..010}},more}}.tar")
    names = [source.name(row) for row in range(len(source))]
    assert names == [
        "more.tar:m.png",
        *(f"shard-{n:03}.tar:{n}.png" for n in (8, 9, 10)),
    ]
    with pytest.raises(SourceError, match=r"names 5 files, of which 1 do not .*shard-012\.tar"):
        open_source("tar", f"{tmp_path}/shard-{{008..012}}.tar")


def test_links_are_told_and_hidden_folders_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", ["./a.png", ".git/b.png", "x/.cache/c.png"])
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = kind, "./a.png"
            archive.addfile(link)
    source = open_source("tar", str(tmp_path / "a.tar"))
    assert [source.name(row) for row in range(len(source))] == ["a.tar:./a.png"]
    assert source.notes == (f"{tmp_path}/a.tar: 2 links are left out, such as a.tar:link.png",)


@pytest.mark.parametrize("split", ["trian", "test", "val"])
def test_a_split_that_is_not_there_is_never_everything(tmp_path, split):
    write_tar(tmp_path / "a.tar", ["a.png"])
    with pytest.raises(SourceError, match=r"is none of|has no splits"):
        open_source("tar", str(tmp_path / "a.tar"), split)
