"""Folders, lists, ArrayRecord files and TFDS."""

import os
import pickle
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.array_record import ArrayRecord
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError, check_same_classes
from dinov2_jax.data.sources.tfds import Tfds


def save(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (value, 0, 0)).save(path, "PNG")
    return path.read_bytes()


def names(source: Folder) -> list[str]:
    return [source.name(row) for row in range(len(source))]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for number, name in enumerate(
        ["b.png", "a/z.jpg", "a/deep/er/y.PNG", "c/no_extension", "c/ünïcødé 図.jpeg", "c/odd.xyz"]
    ):
        save(root / name, number)
    for name in (".hidden.png", ".git/x.png", "notes.txt", "a/Thumbs.db", "a/read.ME.md"):
        save(root / name)
    return root


def test_folder_is_recursive_and_sorted(pictures: Path) -> None:
    source = Folder(str(pictures))
    assert names(source) == sorted(names(source), key=os.fsencode)
    assert set(names(source)) == {
        *("b.png", "a/z.jpg", "a/deep/er/y.PNG", "c/no_extension", "c/ünïcødé 図.jpeg"),
        "c/odd.xyz",
    }
    for row in range(len(source)):
        assert decode(source[row]).shape == (8, 12, 3)
    assert source[0] == (pictures / names(source)[0]).read_bytes()


def test_folder_pickles_with_its_names(pictures: Path) -> None:
    source = Folder(str(pictures))
    again = pickle.loads(pickle.dumps(source))
    assert names(again) == names(source)
    assert again[2] == source[2]


def test_loops_and_dead_links(pictures: Path) -> None:
    expected = names(Folder(str(pictures)))
    (pictures / "a" / "loop").symlink_to(pictures)
    (pictures / "dead.png").symlink_to(pictures / "nowhere.png")
    (pictures / "itself.png").symlink_to(pictures / "itself.png")
    assert names(Folder(str(pictures))) == expected


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        Path(os.fsdecode(name)).write_bytes(save(tmp_path / "plain.png"))
    except OSError:
        pytest.skip("this file system demands UTF-8")
    source = Folder(str(tmp_path))
    assert len(source) == 2
    assert source[0] == source[1]


def test_a_folder_that_may_not_be_read_is_a_bad_record(pictures, monkeypatch) -> None:
    scan = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source("folder", str(pictures))
    assert "a/deep" in names(source) and "a/deep/er/y.PNG" not in names(source)
    with pytest.raises(OSError):
        source[names(source).index("a/deep")]


def test_list_of_paths(pictures: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    absolute = pictures / "b.png"
    listing.write_text(f"pictures/c/ünïcødé 図.jpeg\r\n\n{absolute}\npictures/a/z.jpg", "utf-8")
    source = open_source("folder", str(listing))
    assert names(source) == ["pictures/c/ünïcødé 図.jpeg", str(absolute), "pictures/a/z.jpg"]
    assert source[2] == (pictures / "a/z.jpg").read_bytes()


def test_class_folders(tmp_path: Path) -> None:
    for label in ("cat", "dog", "emu"):
        for number in range(20):
            save(tmp_path / label / "more" / f"{number}.png", number)
    parts = {
        split: open_source("folder", str(tmp_path), split, labels="folders")
        for split in ("train", "test", "all")
    }
    found = {split: names(part) for split, part in parts.items()}
    assert sorted(found["train"] + found["test"]) == sorted(found["all"])
    assert 0.1 < len(found["test"]) / 60 < 0.3
    for part in parts.values():
        assert part.class_names == ("cat", "dog", "emu")
        for row in range(len(part)):
            assert part.name(row).startswith(part.class_names[part.labels[row]])
    save(tmp_path / "cat" / "new.png")
    again = names(open_source("folder", str(tmp_path), "test", labels="folders"))
    assert set(found["test"]) <= set(again)  # a new file moves no other
    assert open_source("folder", str(tmp_path), labels="auto").labels is not None
    unlabelled = open_source("folder", str(tmp_path))
    assert unlabelled.labels is None
    assert len(unlabelled) == 61  # without labels a split is everything


def test_folders_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of torchvision's ImageNet, reached by a path that the shell left as it was."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            save(tmp_path / "sets" / split / label / "0.png")
    save(tmp_path / "sets" / "train" / "dog" / "1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    train, validation = (
        open_source("folder", "~/sets", split, labels="folders")
        for split in ("train", "validation")
    )
    assert names(train) == ["cat/0.png", "dog/0.png", "dog/1.png"]
    assert train.labels.tolist() == [0, 1, 1]
    assert names(validation) == names(open_source("folder", "~/sets", "test"))
    assert validation.class_names == ("cat", "dog")
    check_same_classes(train, validation)
    assert len(open_source("folder", "~/sets", "train")) == 3  # pretraining leaves val/ alone
    assert len(open_source("folder", "~/sets", "all")) == 5
    save(tmp_path / "sets" / "val" / "eel" / "0.png")
    more = open_source("folder", "~/sets", "validation", labels="folders")
    with pytest.raises(SourceError, match="1 of them on one side only, such as 'eel'"):
        check_same_classes(train, more)


@pytest.mark.parametrize("content", [Image.new("L", (9, 9)).tobytes(), "a.png\n".encode("utf-16")])
def test_what_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(SourceError, match="neither a folder nor a list of paths in UTF-8"):
        open_source("folder", str(tmp_path / "list"))


def test_auto_labels_need_class_folders(pictures: Path) -> None:
    assert open_source("folder", str(pictures), labels="auto").labels is None
    with pytest.raises(SourceError, match=r"b\.png lies directly in"):
        open_source("folder", str(pictures), labels="folders")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("foldr", "x"), "data.source='foldr' is none of .* did you mean 'folder'"),
        (("folder", ""), "needs data.path; set --config.data.path"),
        (("openmoji", "", "trian"), "split='trian' .* did you mean 'train'"),
        (("folder", "x", "train", "folder"), "labels='folder' .* did you mean 'folders'"),
        (("tfds", "mnis"), "mnis names no TFDS data set; did you mean 'mnist'"),
    ],
)
def test_wrong_words_give_the_nearest(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(*arguments)


def test_missing_and_empty_paths(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"does not exist; did you mean {pictures}"):
        open_source("folder", str(tmp_path / "picturs"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source("array_record", str(tmp_path / "*.array_record"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(SourceError, match="empty holds no picture"):
        open_source("folder", str(tmp_path / "empty"))
    with pytest.raises(SourceError, match=r"holds no \*\.array_record file"):
        open_source("array_record", str(tmp_path / "empty"))


def test_array_record(tmp_path: Path) -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    pictures = [save(tmp_path / f"{number}.png", number) for number in range(5)]
    for shard, rows in enumerate((pictures[:3], pictures[3:])):
        path = tmp_path / f"data.array_record-0000{shard}-of-00002"
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            writer.write(row)
        writer.close()
    for path in (tmp_path, tmp_path / "data.array_record-*"):
        source = open_source("array_record", str(path))
        assert [source[row] for row in range(len(source))] == pictures
    source = pickle.loads(pickle.dumps(source))
    assert source[4] == pictures[4]
    assert source.name(4).endswith("[4]")
    single = ArrayRecord(str(tmp_path / "data.array_record-00001-of-00002"))
    assert len(single) == 2
    assert single.labels is None


def test_damaged_array_record(tmp_path: Path) -> None:
    """A damaged chunk is one unreadable record; what is no such file at all is refused."""
    module = pytest.importorskip("array_record.python.array_record_module")
    path = tmp_path / "data.array_record"
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    records = np.random.default_rng(0).bytes(3000 * 50)
    for row in range(50):
        writer.write(records[3000 * row : 3000 * (row + 1)])
    writer.close()
    whole = bytearray(path.read_bytes())
    damage = whole.index(records[3000 * 20 : 3000 * 20 + 64])
    whole[damage : damage + 64] = bytes(64)
    path.write_bytes(whole)
    source = open_source("array_record", str(path))
    with pytest.raises(OSError, match="Corrupted"):
        source[20]
    assert source[19] == records[3000 * 19 : 3000 * 20]
    assert source[21] == records[3000 * 21 : 3000 * 22]
    path.write_bytes(b"no such file")
    with pytest.raises(SourceError, match="cannot be read as ArrayRecord"):
        open_source("array_record", str(path))


def prepare_tfds(folder: Path) -> str:
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder
        url_infos: typing.ClassVar = {}  # looked up in the package otherwise

        def _info(self) -> object:
            label = tfds.features.ClassLabel(names=["low", "high"])
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _: object) -> dict:
            return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

        def _generate_examples(self, number: int) -> object:
            for row in range(number):
                path = folder / "raw" / f"{number}-{row}.png"
                save(path, 40 * row)
                yield str(row), {"image": str(path), "label": int(row >= number // 2)}

    builder = TinyShapes(data_dir=str(folder / "prepared"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tfds_gives_raw_bytes_and_labels(tmp_path: Path) -> None:
    source = open_source("tfds", prepare_tfds(tmp_path), "train")
    assert isinstance(source, Tfds)
    assert len(source) == 6
    raw = [source[row] for row in range(6)]
    assert {bytes(record) for record in raw} == {
        (tmp_path / "raw" / f"6-{row}.png").read_bytes() for row in range(6)
    }
    reds = np.array([decode(record)[0, 0, 0] for record in raw])
    np.testing.assert_array_equal(source.labels, reds >= 120)
    assert source.class_names == ("low", "high")
    assert pickle.loads(pickle.dumps(source))[3] == raw[3]
    assert len(open_source("tfds", str(source._title.removesuffix("/train")), "test")) == 2
    with pytest.raises(SourceError, match="split='validation'"):
        open_source("tfds", source._title.removesuffix("/train"), "validation")
