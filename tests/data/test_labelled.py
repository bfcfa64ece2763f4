"""Labelled training pictures: labels stay with their pictures, whatever reads and wherever."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import BadImage
from dinov2_jax.data.loader import LabelledLoader
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.given import Arrays, Paths

LABELS = np.asarray([3, 0, -1, 1, 2, 0, 1])


def flat_pictures() -> Arrays:
    """One colour each, 30 times the record's number, so that any crop tells which it is of."""
    return Arrays([np.full((20 + i, 24, 3), 30 * i, np.uint8) for i in range(7)])


def batches(source, number, labels=LABELS, **changes):
    options = dict(batch_size=4, size=8, seed=1) | changes
    loader = LabelledLoader(source, labels, **options)
    found = [next(loader) for _ in range(number)]
    loader.close()
    return found


def test_every_picture_once_a_pass_with_its_label():
    found = batches(flat_pictures(), 6)  # 24 pictures: four passes over six
    records = np.concatenate([batch["records"] for batch in found])
    images = np.concatenate([batch["images"] for batch in found])
    labels = np.concatenate([batch["labels"] for batch in found])
    assert images.shape == (24, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS[records])
    np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), 30 * records)
    for start in range(0, 24, 6):  # record 2 is left out
        assert sorted(records[start : start + 6]) == [0, 1, 3, 4, 5, 6]
    assert len({tuple(records[i : i + 6]) for i in range(0, 24, 6)}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_number_only(workers):
    rng = np.random.default_rng(0)
    source = Arrays([rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(7)])
    whole = batches(source, 5)
    later = batches(source, 2, start_batch=3, workers=workers)
    halves = [batches(source, 5, parts=2, share=(i,)) for i in range(2)]
    for name in ("images", "labels", "records"):
        for a, b in zip(whole[3:], later, strict=True):
            np.testing.assert_array_equal(a[name], b[name])
        for i in range(5):
            joined = np.concatenate([half[i][name] for half in halves])
            np.testing.assert_array_equal(whole[i][name], joined)
    ones = [batches(source, 1, parts=4, share=(i,))[0]["records"] for i in range(4)]
    np.testing.assert_array_equal(whole[0]["records"], np.concatenate(ones))
    other = batches(source, 1, seed=2)[0]
    assert not np.array_equal(whole[0]["images"], other["images"])
    again = [b for b in batches(source, 3) for _ in b]  # crops of one picture differ by pass
    assert not np.array_equal(again[0]["images"], again[-1]["images"])


def test_an_unreadable_picture_is_replaced_with_the_label_of_the_other(tmp_path: Path):
    for i in range(4):
        Image.new("RGB", (30, 30), (60 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = Folder(str(tmp_path))
    found = batches(source, 10, labels=np.asarray([5, 6, 7, 8]))
    for batch in found:
        assert 7 not in batch["labels"]
        np.testing.assert_array_equal(batch["images"].max(axis=(1, 2, 3)), 60 * batch["records"])
        np.testing.assert_array_equal(batch["labels"], 5 + batch["records"])


def test_nothing_but_unreadable_pictures_ends_it(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    source = Paths([str(tmp_path / "a.png")])
    with pytest.raises(BadImage, match=r"cannot be read, the last of them .*a\.png"):
        batches(source, 1, labels=np.asarray([0]))
