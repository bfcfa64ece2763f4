"""Batches of pictures with targets: what they hold, in which order, and what is replaced."""

import dataclasses

import numpy as np
import pytest

from dinov2_jax.data.decode import WHOLE_RGB, BadImage
from dinov2_jax.data.dense_loader import DenseLoader, load_pair
from dinov2_jax.data.depth_crops import DepthCrops
from dinov2_jax.data.sources.source import SourceError, Unlabelled

SIZE = 6, 8


class Pictures(Unlabelled):
    """Row i has the grey level i; `broken` rows cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("gone")
        return np.full((10, 12, 3), index, np.uint8)

    def name(self, index):
        return f"{index}.png"


@dataclasses.dataclass(frozen=True)
class Split:
    """Depths are the number of the row plus 1, except for lost rows and those of other sizes."""

    pictures: Pictures
    lost: tuple = ()
    larger: tuple = ()

    def __len__(self):
        return len(self.pictures)

    def target(self, index):
        if index in self.lost:
            raise SourceError("no depth")
        return np.full((11 if index in self.larger else 10, 12), index + 1.0, np.float32)


def loader(split, **changes):
    given = {"batch_size": 4, "seed": 3} | changes
    crops = DepthCrops(*SIZE, degrees=0, gamma=(1, 1), brightness=(1, 1), colour=(1, 1))
    return DenseLoader(split, crops, SIZE, **given)


def take(loader, count):
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() == {"images", "targets"}
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_batches():
    found = take(loader(Split(Pictures(8))), 4)
    for batch in found:
        assert batch["images"].shape == (4, *SIZE, 3) and batch["images"].dtype == np.uint8
        assert batch["targets"].shape == (4, *SIZE) and batch["targets"].dtype == np.float32
        np.testing.assert_array_equal(batch["images"][..., 0] + 1.0, batch["targets"])
    passes = [np.concatenate([b["targets"][:, 0, 0] for b in found[i : i + 2]]) for i in (0, 2)]
    assert [sorted(order) for order in passes] == [list(range(1, 9))] * 2
    assert (passes[0] != passes[1]).any()


def test_a_batch_depends_on_seed_and_number_alone():
    split = Split(Pictures(9))
    whole = take(loader(split), 6)
    same(take(loader(split, start_batch=4), 2), whole[4:])
    same(take(loader(split, workers=2), 3), whole[:3])
    with pytest.raises(AssertionError):
        same(take(loader(split, seed=4), 6), whole)


def test_processes_share_a_batch():
    split = Split(Pictures(9))
    whole = take(loader(split), 3)
    halves = [take(loader(split, parts=4, share=share), 3) for share in ((0, 1), (2, 3))]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*halves, strict=True)
    ]
    same(joined, whole)


def test_what_cannot_be_read_is_replaced_and_counted():
    split = Split(Pictures(6, broken=(0,)), lost=(1,), larger=(2,))
    batches = loader(split)
    found = [next(batches) for _ in range(3)]  # two passes of six records
    batches.close()
    rows = np.concatenate([batch["targets"][:, 0, 0] for batch in found]).astype(int) - 1
    assert set(rows.tolist()) == {3, 4, 5} and batches.replaced >= 6
    with pytest.raises(BadImage, match=r"2\.png has 12 x 10 px, but its target 12 x 11"):
        load_pair(split, 2, WHOLE_RGB)
    nothing = loader(Split(Pictures(2), lost=(0, 1)))
    with pytest.raises(BadImage, match="9 records in a row cannot be read, the last one: no depth"):
        next(nothing)
    nothing.close()
