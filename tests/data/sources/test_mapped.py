"""Names and places of many pictures: workers map them from one file."""

import multiprocessing
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.data.sources.files import Names
from dinov2_jax.data.sources.mapped import Mapped

COUNT = 200_000


@pytest.fixture
def names() -> Names:
    return Names([b"class_%04d/picture_%07d.jpg" % (n % 1000, n) for n in range(COUNT)])


def ask(pickled: bytes, rows: list[int], answers: multiprocessing.Queue) -> None:
    found = pickle.loads(pickled)
    answers.put([found[row] for row in rows])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system has no /proc")
def test_a_worker_gets_a_place_instead_of_a_copy(names: Names) -> None:
    pickled = pickle.dumps(names)
    assert len(pickled) < 1000  # of 7 MB
    rows, context = [0, 7, COUNT - 1], multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=ask, args=(pickled, rows, answers))
    worker.start()
    assert answers.get(timeout=60) == [names[row] for row in rows]
    worker.join()
    mapped = pickle.loads(pickled)
    again = pickle.loads(pickle.dumps(mapped))
    assert [again[row] for row in rows] == [names[row] for row in rows]


def test_no_file_is_left(names: Names, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pickle.dumps(names)
    assert not list(tmp_path.iterdir())  # the file has no name, so that not even a kill leaves one


def test_a_full_disk_and_a_small_array_are_pickled(monkeypatch) -> None:
    small = Mapped(np.arange(3))
    assert pickle.loads(pickle.dumps(small)).array.tolist() == [0, 1, 2]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    large = Mapped(np.arange(COUNT))
    pickled = pickle.dumps(large)
    assert len(pickled) > large.array.nbytes
    np.testing.assert_array_equal(pickle.loads(pickled).array, large.array)
