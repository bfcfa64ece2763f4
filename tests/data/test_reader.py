"""Loader processes: room in shared memory, and processes that are killed."""

import os
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import grain
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.loader import (
    BatchLoader,
    BatchSpec,
    CropSpec,
    LabelledLoader,
    MaskSpec,
    TrainLoader,
)
from dinov2_jax.data.reader import STOP_SIGNALS, LoaderError, LostWorkerError
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.stream import stream_pictures

CROPS = CropSpec(224, (0.32, 1.0), 96, (0.05, 0.32), 8)
SPEC = BatchSpec(CROPS, MaskSpec(14, 0.5, (0.1, 0.5)), DecodeSpec(), 128, 64, seed=0)
SHM = Path("/dev/shm")


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    for row in range(3):
        Image.new("RGB", (9, 7), (row, 0, 0)).save(tmp_path / f"{row}.png")
    return Folder(str(tmp_path))


@pytest.fixture
def room(monkeypatch):
    """Sets how many MB of shared memory seem to be free."""
    usage = namedtuple("usage", "total used free")

    def give(megabytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, megabytes << 20))

    return give


@pytest.mark.skipif(not SHM.is_dir(), reason="this system has no /dev/shm")
def test_too_little_shared_memory_is_refused_by_all_users_of_the_loader(source, room) -> None:
    """Docker gives 64 MB: workers would die by SIGBUS. 0 workers need none."""
    room(64)
    labels = np.zeros(3, np.int64)
    # 64 images of 2 * 224^2 + 8 * 96^2 pixels of 3 bytes are 32 MB; two workers hold eight of them,
    # and the batch two.
    with pytest.raises(LoaderError, match=r"^2 loader .* 319 MB .* 64 MB free.*=1g.*workers=0$"):
        TrainLoader(source, SPEC, workers=2)
    with pytest.raises(LoaderError, match=r"4 loader processes need 157 MB .*workers=1$"):
        LabelledLoader(source, labels, batch_size=64, size=224, workers=4)
    fit = Fit("center_crop", (518,), 518, 14)
    stream = stream_pictures(source, np.arange(3), fit, decoding=DecodeSpec(), workers=4)
    with pytest.raises(LoaderError, match=r"4 loader processes need 209 MB .*workers=1$"):
        next(stream)
    for loader in (
        TrainLoader(source, SPEC, workers=0),
        LabelledLoader(source, labels, batch_size=64, size=224, workers=1),
    ):
        loader.close()


@pytest.mark.skipif(not SHM.is_dir(), reason="this system has no /dev/shm")
def test_what_is_refused_is_what_workers_take(source) -> None:
    """Two workers that are ahead, and a batch of one group: at most nine groups."""
    crops = {2 * CROPS.global_size**2, CROPS.local_number * CROPS.local_size**2}
    sizes = {SPEC.group_size * pixels * 3 for pixels in crops}  # no other test's files have these
    loader = TrainLoader(source, SPEC, workers=2, share=[0])
    try:
        next(loader)
        time.sleep(3)
        found = [path.stat().st_size for path in SHM.iterdir()]
        taken = sum(size for size in found if size in sizes)
    finally:
        loader.close()
    assert SPEC.group_bytes <= taken <= 9.1 * SPEC.group_bytes


class Deadly(grain.transforms.Map):
    """Kills its process when it meets element `at`, as the kernel does when memory is full."""

    def __init__(self, at: int, mark: Path, again: bool) -> None:
        self.at, self.mark, self.again = at, mark, again

    def map(self, element: int) -> dict[str, np.ndarray]:
        if element == self.at and (self.again or not self.mark.exists()):
            self.mark.touch()
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": np.full(2, element)}


def numbers(tmp_path: Path, *, again: bool) -> BatchLoader:
    dataset = grain.MapDataset.range(20).map(Deadly(7, tmp_path / "mark", again))
    return BatchLoader(dataset, 2, [0, 1], 0, 1, 16)


def test_workers_start_again_after_one_was_killed(tmp_path: Path) -> None:
    loader = numbers(tmp_path, again=False)
    found = np.concatenate([next(loader)["x"] for _ in range(6)])
    assert found.tolist() == np.repeat(np.arange(12), 2).tolist()
    (warning,) = loader.take_warnings()
    assert "exit code -9: it was killed, most likely because the machine's memory" in warning
    assert loader.take_warnings() == []
    loader.close()


def test_workers_that_are_killed_again_and_again_end_the_run(tmp_path: Path) -> None:
    loader = numbers(tmp_path, again=True)
    assert [int(next(loader)["x"][0]) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(LostWorkerError, match=r"fewer than 1 --config\.data\.workers"):
        next(loader)
    loader.close()


class Signalled(grain.transforms.Map):
    """Gets every signal that asks a run to end, as all processes of a job do."""

    def map(self, element: int) -> dict[str, np.ndarray]:
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        return {"x": np.full(2, element)}


def test_workers_leave_signals_to_the_main_process() -> None:
    """It saves first, and takes the batches that are on their way."""
    loader = BatchLoader(grain.MapDataset.range(8).map(Signalled()), 2, [0, 1], 0, 1, 16)
    assert [int(next(loader)["x"][0]) for _ in range(4)] == [0, 2, 4, 6]
    assert loader.take_warnings() == []
    loader.close()
