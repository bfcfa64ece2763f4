"""Sets with depths, from miniature copies in their official layouts."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError, notes_of
from dinov2_jax.datasets.depth import open_depth
from dinov2_jax.datasets.depth_checks import check_depths
from dinov2_jax.datasets.depth_files import read_depth

SIZE = 6, 8  # rows, columns


def picture(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (9, 8, 7)).save(path)


def depth(path: Path, value, size=SIZE, dtype=np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size, value, dtype)
    values[0] = 0
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def metres(split, row):
    found = split.target(row)
    assert found.dtype == np.float32 and found.shape == SIZE and (found[0] == 0).all()
    assert len(np.unique(found[1:])) == 1
    return float(found[-1, -1])


NYU = {"train": ["kitchen_0028b/%s_00045", "playroom_0004/%s_00113"], "test": ["bathroom/%s_00045"]}


def build_nyu(root: Path, lists="", scenes="", test="") -> None:
    """As the toolboxes unpack it; the train list has a "/" before each name, as it is published."""
    value = 1000
    for split, names in NYU.items():
        lines = []
        for name in names:
            rgb, sync = name % "rgb" + ".jpg", name % "sync_depth" + ".png"
            where = root / (test if split == "test" else scenes)
            picture(where / rgb)
            depth(where / sync, value)
            value += 500
            slash = "/" if split == "train" else ""
            lines.append(f"{slash}{rgb} {slash}{sync} 518.8579\n")
        (root / lists).mkdir(exist_ok=True)
        (root / lists / f"nyu_{split}.txt").write_text("".join(lines))


@pytest.mark.parametrize(
    "layout", [{}, {"lists": "splits", "scenes": "sync", "test": "official_splits/test"}]
)
def test_nyu(tmp_path, layout):
    build_nyu(tmp_path, **layout)
    data = open_depth("nyu", str(tmp_path))
    assert data.splits.keys() == {"train", "test"} and data.class_names == ()
    train, test = data.splits["train"], pickle.loads(pickle.dumps(data.splits["test"]))
    assert [train.pictures.name(i) for i in (0, 1)] == [n % "rgb" + ".jpg" for n in NYU["train"]]
    assert [metres(train, i) for i in (0, 1)] == [1.0, 1.5]
    assert len(test) == 1 and metres(test, 0) == 2.0
    assert metres(open_depth("nyu", str(tmp_path), 500.0).splits["test"], 0) == 4.0


def test_test_pictures_alone(tmp_path):
    build_nyu(tmp_path)
    (tmp_path / "nyu_train.txt").unlink()
    assert open_depth("nyu", str(tmp_path), train=False).splits.keys() == {"test"}
    with pytest.raises(SourceError, match=r"train: .* has no nyu_train.txt"):
        open_depth("nyu", str(tmp_path))


def build_kitti(root: Path, official: bool) -> None:
    """Drive 1 is Eigen's train, drive 2 its test; KITTI's archive has both drives in train/."""
    lines = {"train": [], "test": []}
    for split, drive, frames in (("train", 1, (5, 6)), ("test", 2, (7,)), ("test", 3, (8,))):
        for frame in frames:
            folder = f"2011_09_26_drive_000{drive}_sync"
            rgb = f"2011_09_26/{folder}/image_02/data/{frame:010}.png"
            truth = f"{folder}/proj_depth/groundtruth/image_02/{frame:010}.png"
            picture(root / "input" / rgb)
            part = ("train" if drive < 3 else "val") if official else ""
            depth(root / "gt_depth" / part / truth, 256 * frame)
            lines[split].append(f"{rgb} {truth} 721.5377\n")
    lines["test"].insert(1, "2011_09_26/x_sync/image_02/data/0000000075.png None 721.5377\n")
    for split, rows in lines.items():
        (root / f"kitti_eigen_{split}.txt").write_text("".join(rows))


@pytest.mark.parametrize("official", [False, True])
def test_kitti(tmp_path, official):
    build_kitti(tmp_path, official)
    data = open_depth("kitti", str(tmp_path))
    assert [metres(data.splits["train"], i) for i in range(2)] == [5, 6]
    test = data.splits["test"]
    assert len(test) == 2 and [metres(test, i) for i in range(2)] == [7, 8]
    assert "1 of 3 lines name no depth" in notes_of(test.pictures)[0]
    next(tmp_path.rglob("gt_depth/**/0000000008.png")).unlink()
    with pytest.raises(SourceError, match=r"1 of 2 depths are missing, such as .*0000000008.png"):
        open_depth("kitti", str(tmp_path))


def test_sunrgbd(tmp_path):
    """Bits turn back, depths beyond 8 m become 8 m, and lines end in CRLF."""
    folder = "SUNRGBD/kv2/kinect2data/000002_x-resize"
    lines = []
    for name, millimetres in (("0000103", 2345), ("0000104", 9000)):
        picture(tmp_path / folder / f"image/{name}.jpg")
        depth(
            tmp_path / folder / f"depth/{name}.png", (millimetres << 3 | millimetres >> 13) % 65536
        )
        lines.append(f"{folder}/image/{name}.jpg {folder}/depth/{name}.png\r\n")
    (tmp_path / "SUNRGBD_val_splits.txt").write_bytes("".join(lines).encode())
    data = open_depth("sunrgbd", str(tmp_path))
    assert data.splits.keys() == {"test"}
    assert [round(metres(data.splits["test"], i), 4) for i in (0, 1)] == [2.345, 8.0]


def build_folder(root: Path, ending=".png", dtype=np.uint16, value=1500) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            picture(root / split / f"{name}.jpg")
            depth(root / f"{split}_depth" / f"{name}{ending}", value, dtype=dtype)


def test_folder(tmp_path):
    build_folder(tmp_path / "rooms")
    data = open_depth("folder", str(tmp_path / "rooms"))
    assert data.name == "rooms" and metres(data.splits["train"], 1) == 1.5


@pytest.mark.parametrize(
    ("ending", "dtype", "value", "units"),
    [(".png", np.uint8, 30, 10), (".tif", np.float32, 3, 1), (".npy", np.float16, 3, 1),
     (".tif", np.uint16, 768, 256), (".pgm", np.uint8, 3, 1)],
)  # fmt: skip
def test_kinds_of_files(tmp_path, ending, dtype, value, units):
    path = tmp_path / f"x{ending}"
    depth(path, value, dtype=dtype)
    found = read_depth(str(path), units)
    assert found.dtype == np.float32 and (found[1:] == 3).all() and (found[0] == 0).all()


def test_values_that_are_none(tmp_path):
    path = str(tmp_path / "x.npy")
    np.save(path, np.array([[np.nan, np.inf, -1, 2]]))
    np.testing.assert_array_equal(read_depth(path, 1), [[0, 0, 0, 2]])


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda p: picture(p), "has colours .RGB."),
        (lambda p: p.write_bytes(b"no picture"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
    ],
)
def test_unreadable_files(tmp_path, write, text):
    write(tmp_path / "x.png")
    with pytest.raises(SourceError, match=text):
        read_depth(str(tmp_path / "x.png"), 1000)
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2)))
    with pytest.raises(SourceError, match=r"numbers .H, W. are needed"):
        read_depth(str(tmp_path / "x.npy"), 1)


# ------------------------------------------------------------------------------------------ checks


def test_checks_pass_and_count_empty_files(tmp_path):
    build_folder(tmp_path)
    depth(tmp_path / "train_depth/b.png", 0)
    splits = open_depth("folder", str(tmp_path)).splits
    assert check_depths(splits["test"], "test", 0.001, 10, 1000) == []
    (note,) = check_depths(splits["train"], "train", 0.001, 10, 1000)
    assert "1 of 2 depth files that were looked at hold no depth" in note


@pytest.mark.parametrize(
    ("value", "units", "remedy"), [(900, 5000, "such as 100 or 256 or 1000"), (15000, 100, "1000")]
)
def test_other_units_are_told(tmp_path, value, units, remedy):
    build_folder(tmp_path, value=value)
    split = open_depth("folder", str(tmp_path), units).splits["train"]
    (note,) = check_depths(split, "train", 0.001, 1000, units)
    assert "which is unlikely" in note and "--config.depth.units_per_metre" in note
    assert remedy in note


def test_no_depth_in_the_range_is_refused(tmp_path):
    build_folder(tmp_path, value=15000)
    split = open_depth("folder", str(tmp_path)).splits["train"]
    with pytest.raises(SourceError, match=r"median is 15 m .*units_per_metre"):
        check_depths(split, "train", 0.001, 10, 1000)
    for name in "ab":
        depth(tmp_path / f"train_depth/{name}.png", 0)
    with pytest.raises(SourceError, match="hold none at all"):
        check_depths(split, "train", 0.001, 10, 1000)


def test_another_size_or_an_unreadable_file_is_refused(tmp_path):
    build_folder(tmp_path)
    split = open_depth("folder", str(tmp_path)).splits["train"]
    depth(tmp_path / "train_depth/b.png", 1000, size=(3, 4))
    with pytest.raises(SourceError, match=r"b.jpg has 8 x 6 px, but its depth 4 x 3"):
        check_depths(split, "train", 0.001, 10, 1000)
    (tmp_path / "train_depth/b.png").write_bytes(b"")
    with pytest.raises(SourceError, match="it is empty"):
        check_depths(split, "train", 0.001, 10, 1000)


def test_a_picture_without_depth_is_refused(tmp_path):
    build_folder(tmp_path)
    (tmp_path / "train_depth/b.png").unlink()
    with pytest.raises(SourceError, match="1 of 2 pictures have no file"):
        open_depth("folder", str(tmp_path))
