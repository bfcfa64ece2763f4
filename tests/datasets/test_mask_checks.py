"""Masks that cannot be used are told before long work."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.mask_checks import check_masks
from dinov2_jax.datasets.segmentation import open_segmentation


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    for split in ("train", "test"):
        for kind in ("", "_masks"):
            (tmp_path / f"{split}{kind}").mkdir()
        for number in range(3):
            Image.new("RGB", (12, 8)).save(tmp_path / f"{split}/{number}.png")
            save(tmp_path / f"{split}_masks/{number}.png", 1)
    return tmp_path


def save(path, value, size=(8, 12)):
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def check(folder):
    return check_masks(open_segmentation("folder", str(folder)).splits["train"], "train")


def test_good_masks_and_one_without_classes(folder):
    assert check(folder) == []
    save(folder / "train_masks/1.png", 255)
    assert check(folder) == ["train: 1 of 3 masks that were looked at hold no class"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_bytes(b"no"), r"1\.png cannot be read \(no picture"),
        (lambda path: save(path, 1, (8, 11)), "has 12 x 8 px, but its mask 11 x 8"),
        (lambda path: [save(path.with_stem(str(i)), 255) for i in range(3)], "hold no class, such"),
    ],
)
def test_masks_that_cannot_be_used(folder, make, told):
    make(folder / "train_masks/1.png")
    with pytest.raises(SourceError, match=told):
        check(folder)
