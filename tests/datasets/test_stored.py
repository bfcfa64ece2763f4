"""Pickles that hold data are read; others are refused before they run code."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.stored import read_pickle


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should_never_be_there",)


@pytest.mark.parametrize("value", [Evil(), {"data": [Evil()]}, os.system, io.BytesIO])
def test_pickles_run_no_code(tmp_path: Path, value: object) -> None:
    (tmp_path / "evil").write_bytes(pickle.dumps(value))
    with pytest.raises(SourceError, match="a data set holds arrays, strings and numbers only"):
        read_pickle(str(tmp_path / "evil"))
    assert not os.path.exists("/tmp/should_never_be_there")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_data_are_read(tmp_path: Path, protocol: int) -> None:
    value = {
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "objects": np.array(["a", None], object),
        "number": np.float64(0.5),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "plain": [b"bytes", b"", "text", 1, 2.5, (None, True)],
    }
    (tmp_path / "data").write_bytes(pickle.dumps(value, protocol))
    found = read_pickle(str(tmp_path / "data"))
    np.testing.assert_array_equal(found["array"], value["array"])
    assert found["array"].dtype == np.int32
    np.testing.assert_array_equal(found["columns"], value["columns"])
    assert found["objects"].tolist() == ["a", None]
    assert (found["number"], found["plain"]) == (0.5, value["plain"])


def test_pickles_under_the_names_of_old_numpy_are_read(tmp_path: Path) -> None:
    raw = pickle.dumps({b"data": np.arange(3)}, protocol=2)
    old = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != raw
    (tmp_path / "old").write_bytes(old)
    np.testing.assert_array_equal(read_pickle(str(tmp_path / "old"))[b"data"], [0, 1, 2])
