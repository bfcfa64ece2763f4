"""Features of videos: pooled frames of many videos take little memory."""

import tracemalloc

import numpy as np
import pytest

from dinov2_jax.eval.protocols import video
from dinov2_jax.features.cache import Labelled

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("pooling", ["concat", "mean"])
def test_pooled_frames_of_many_videos_stay_on_disk(tmp_path, pooling):
    videos, dim = 3000, 256
    frames = np.lib.format.open_memmap(
        tmp_path / "cls.npy", "w+", np.float32, (videos * video.FRAMES, dim)
    )
    frames[:] = RNG.normal(size=frames.shape)
    frames[8 * 700 + 3] = np.nan  # a video that cannot be read
    column = np.load(tmp_path / "cls.npy", mmap_mode="r")
    labels = np.repeat(np.arange(videos), video.FRAMES)
    split = Labelled((column, column), column, labels, video.FRAMES)
    tracemalloc.start()
    pooled = video._pool(split, video._Set(print, "test", pooling))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < frames.nbytes * (0.4 if pooling == "concat" else 0.5)
    whole = np.delete(np.arange(videos), 700)
    by_video = np.asarray(frames).reshape(videos, video.FRAMES, dim)
    expected = by_video.mean(axis=1) if pooling == "mean" else by_video.reshape(videos, -1)
    np.testing.assert_array_equal(pooled.labels, whole)
    np.testing.assert_array_equal(pooled.cls[1][5:900], expected[whole[5:900]])
    assert pooled.mean_patch.shape == (videos - 1, expected.shape[1]) and pooled.unreadable == 1
