"""Batches of fixed lengths: every picture once; padding and unreadable pictures leave no trace."""

import numpy as np
import pytest

from dinov2_jax.features.batches import batches_by_size, batches_in_step, own_rows


def pictures(rows, lost=()):
    """A picture of one colour for each row; None for the lost ones."""
    for row in rows:
        yield int(row), None if row in lost else np.full((4, 4, 3), row, np.uint8)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_pictures_and_make_equally_many_batches(processes):
    count, length, lost = 10, 4, {1, 9}
    width, made = length // processes, []
    for process in range(processes):
        slots = range(process * width, (process + 1) * width)
        rows = own_rows(count, length, slots)
        given = pictures(rows, lost)
        made.append(list(batches_in_step(given, count, length, slots, (4, 4, 3))))
    assert {len(batches) for batches in made} == {3}
    for number, parts in enumerate(zip(*made, strict=True)):
        assert len({tuple(part.rows) for part in parts}) == 1
        rows = parts[0].rows
        assert rows == list(range(4 * number, min(4 * number + 4, count)))
        images, readable = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        assert readable.tolist() == [
            r in rows and r not in lost for r in range(4 * number, 4 * number + 4)
        ]
        for slot, row in enumerate(rows):
            assert (images[slot] == (0 if row in lost else row)).all()
        assert not images[len(rows) :].any()


def test_every_readable_picture_is_in_one_batch_of_its_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, 30)
    given = (
        (i, None if i == 7 else np.full((4 * s, 4, 3), i, np.uint8)) for i, s in enumerate(sizes)
    )
    batches = list(batches_by_size(given, (8, 2)))
    assert {len(batch.images) for batch in batches} == {8, 2}
    assert sorted(row for batch in batches for row in batch.rows) == [
        i for i in range(30) if i != 7
    ]
    for batch in batches:
        assert batch.readable.tolist() == [i < len(batch.rows) for i in range(len(batch.images))]
        for row, image in zip(batch.rows, batch.images, strict=False):
            assert (image == row).all() and image.shape[0] == 4 * sizes[row]
