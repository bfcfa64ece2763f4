"""Sets with masks, on miniature copies in their official layouts."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.mask_checks import check_masks
from dinov2_jax.datasets.pixel_classes import ADE20K, CITYSCAPES, VOC2012, voc_colours
from dinov2_jax.datasets.segmentation import open_segmentation

SIZE = 6, 8


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)


def mask(path, values, palette=False):
    """A mask whose first row has these values, and whose others have the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.full(SIZE, values[-1], np.uint8)
    found[0, : len(values)] = values
    image = Image.fromarray(found)
    if palette:
        image = image.convert("P")
        image.putpalette(voc_colours(256).tobytes())
        image.putdata(found.ravel().tolist())
    image.save(path)


def first_row(split, index=0):
    return split.target(index)[0].tolist()


# ------------------------------------------------------------------------------------------ ADE20K
def test_ade20k(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    for folder, kind, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(count):
            picture(base / f"images/{folder}/ADE_{kind}_{i:08}.jpg")
            mask(base / f"annotations/{folder}/ADE_{kind}_{i:08}.png", [0, 1, 150, i + 1])
    for root in (tmp_path, base):
        data = open_segmentation("ade20k", str(root))
        assert [len(data.splits[name]) for name in ("train", "test")] == [3, 2]
        assert data.class_names == ADE20K and data.colours.shape == (150, 3)
        # 0 is "other", which neither trains nor judges.
        assert first_row(data.splits["train"], 2)[:4] == [255, 0, 149, 2]
        assert data.splits["test"].pictures.name(1).endswith("ADE_val_00000001.jpg")
    (base / "annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(SourceError, match="1 of 3 pictures have no file in"):
        open_segmentation("ade20k", str(tmp_path))


# --------------------------------------------------------------------------------------------- VOC
def voc(root, train=("2007_1", "2007_2"), val=("2007_3",), more=()):
    base = root / "VOCdevkit/VOC2012"
    for name in (*train, *val, *more):
        picture(base / f"JPEGImages/{name}.jpg")
    for name in (*train, *val):
        mask(base / f"SegmentationClass/{name}.png", [0, 15, 20, 255], palette=True)
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for file, names in (("train", train), ("val", val)):
        (lists / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))
    return base


def test_voc2012_alone_says_that_it_is_few(tmp_path):
    voc(tmp_path)
    data = open_segmentation("voc2012", str(tmp_path))
    assert len(data.splits["train"]) == 2 and len(data.splits["test"]) == 1
    assert "only its own 2 pictures" in data.splits["train"].pictures.notes[0]
    assert first_row(data.splits["test"])[:4] == [0, 15, 20, 255]
    assert data.class_names == VOC2012 and data.colours[15].tolist() == [192, 128, 128]


def test_voc2012_with_the_masks_that_are_usually_added(tmp_path):
    base = voc(tmp_path, more=("2008_7",))
    for name in ("2007_1", "2007_2", "2008_7"):
        mask(base / f"SegmentationClassAug/{name}.png", [3, 4])
    (base / "ImageSets/Segmentation/trainaug.txt").write_text("2007_1\n2007_2\n2008_7\n")
    train = open_segmentation("voc2012", str(tmp_path)).splits["train"]
    assert len(train) == 3 and first_row(train, 2)[:2] == [3, 4] and not train.pictures.notes
    (base / "SegmentationClassAug/2008_7.png").unlink()
    with pytest.raises(SourceError, match=r"1 of 3 masks are missing, such as .*2008_7.png"):
        open_segmentation("voc2012", str(tmp_path))


def test_voc2012_with_sbd_in_its_own_layout(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    voc(tmp_path, more=("2008_7", "2008_8"))
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "cls").mkdir(parents=True)
    # One of VOC's own training pictures, and one that VOC judges, which must not be learned.
    (sbd / "train.txt").write_text("2008_7\n2007_3\n")
    (sbd / "val.txt").write_text("2008_8\n2007_1\n")
    for name in ("2008_7", "2008_8", "2007_1", "2007_3"):
        values = np.full(SIZE, 9, np.uint8)
        scipy_io.savemat(sbd / f"cls/{name}.mat", {"GTcls": {"Segmentation": values}})
    train = open_segmentation("voc2012", str(tmp_path)).splits["train"]
    names = [train.pictures.name(i).rsplit("/")[-1] for i in range(len(train))]
    assert names == ["2007_1.jpg", "2007_2.jpg", "2008_7.jpg", "2008_8.jpg"]
    assert first_row(train, 3) == [9] * 8 and first_row(train, 0)[:3] == [0, 15, 20]
    (sbd / "cls/2008_8.mat").write_bytes(b"no file of Matlab")
    with pytest.raises(SourceError, match=r"2008_8.mat cannot be read"):
        train.target(3)


# -------------------------------------------------------------------------------------- Cityscapes
def test_cityscapes(tmp_path):
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("munster",))):
        for city in cities:
            stem = f"{split}/{city}/{city}_000000_000019"
            picture(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
            mask(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", [7, 33, 0, 29, 26, 3])
            mask(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png", [1])
    data = open_segmentation("cityscapes", str(tmp_path))
    assert [len(data.splits[name]) for name in ("train", "test")] == [2, 1]
    assert first_row(data.splits["train"])[:6] == [0, 18, 255, 255, 13, 255]
    assert data.class_names == CITYSCAPES and data.colours[13].tolist() == [0, 0, 142]


# ------------------------------------------------------------------------------- CamVid and folders
@pytest.mark.parametrize("layout", ["{}_masks", "{}/masks"])
def test_camvid_and_folder(tmp_path, layout):
    for split in ("train", "val", "test"):
        for i in range(2):
            folder = split if "/" not in layout else f"{split}/images"
            picture(tmp_path / f"{folder}/{i}.jpg")
            mask(tmp_path / f"{layout.format(split)}/{i}.png", [0, 1, 2, 255, 3, 9])
    (tmp_path / "classes.txt").write_text("sky\nroad 10 20 30\ntree\n")
    for name in ("camvid", "folder"):
        data = open_segmentation(name, str(tmp_path))
        assert {k: len(v) for k, v in data.splits.items()} == {"train": 2, "val": 2, "test": 2}
        assert data.class_names == ("sky", "road", "tree")
        assert data.colours[1].tolist() == [10, 20, 30]
        assert first_row(data.splits["val"])[:6] == [0, 1, 2, 255, 255, 255]


def test_class_names_are_checked(tmp_path):
    picture(tmp_path / "train/0.jpg")
    for text, message in (("", "names 0 classes"), ("a\na\n", "names 2 classes, 1 of them")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(SourceError, match=message):
            open_segmentation("folder", str(tmp_path))


# ------------------------------------------------------------------------------------------ checks
def folder(root, values):
    """A folder set whose training masks begin with the given values."""
    for i, row in enumerate(values):
        picture(root / f"train/{i}.png")
        mask(root / f"train_masks/{i}.png", row)
    picture(root / "test/0.png")
    mask(root / "test_masks/0.png", [0])
    (root / "classes.txt").write_text("a\nb\n")

    def check():
        split = open_segmentation("folder", str(root)).splits["train"]
        return check_masks(split, "set, train", classes=2)

    return check


def test_odd_masks_are_counted(tmp_path):
    notes = folder(tmp_path, [[0, 1], [255], [0, 7, 1]])()
    assert notes == [
        "set, train: 1 of 3 masks have no pixel with a class",
        "set, train: masks have values that are no class (7); they are ignored",
    ]
    assert folder(tmp_path / "usual", [[0, 1], [0, 2, 255, 1]])() == []


def test_masks_that_cannot_be_used_are_one_sentence(tmp_path):
    check = folder(tmp_path, [[0, 1], [0], [1]])
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "train_masks/1.png")
    with pytest.raises(SourceError, match=r"1 of 3 masks cannot be used.* has 5 x 5 px, but its"):
        check()
    (tmp_path / "train_masks/1.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"1 of 3 masks cannot be used.*cannot be read"):
        check()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "train_masks/1.png")
    with pytest.raises(SourceError, match=r"has colours \(RGB\)"):
        check()
    nothing = folder(tmp_path / "void", [[255], [77]])
    with pytest.raises(SourceError, match="none of 2 masks has a pixel with a class"):
        nothing()


def test_masks_of_16_bits_are_read_as_they_are(tmp_path):
    check = folder(tmp_path, [[0, 1]])
    values = np.zeros(SIZE, np.uint16)
    values[0, :3] = 1, 300, 65535
    Image.fromarray(values).save(tmp_path / "train_masks/0.png")
    split = open_segmentation("folder", str(tmp_path)).splits["train"]
    assert first_row(split)[:4] == [1, 255, 255, 0]
    assert "(300, 65535)" in check()[0]
