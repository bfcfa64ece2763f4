"""ArrayRecord files, whole and damaged."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.data.sources.array_record import ArrayRecord
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError


def test_array_record(tmp_path: Path) -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    pictures = [bytes([number]) * 100 for number in range(5)]
    for shard, rows in enumerate((pictures[:3], pictures[3:])):
        path = tmp_path / f"data.array_record-0000{shard}-of-00002"
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            writer.write(row)
        writer.close()
    for path in (tmp_path, tmp_path / "data.array_record-*"):
        source = open_source("array_record", str(path))
        assert [source[row] for row in range(len(source))] == pictures
    source = pickle.loads(pickle.dumps(source))
    assert source[4] == pictures[4]
    assert source.name(4).endswith("[4]")
    single = ArrayRecord(str(tmp_path / "data.array_record-00001-of-00002"))
    assert len(single) == 2
    assert single.labels is None


def test_damaged_array_record(tmp_path: Path) -> None:
    """A damaged chunk is one unreadable record; what is no such file at all is refused."""
    module = pytest.importorskip("array_record.python.array_record_module")
    path = tmp_path / "data.array_record"
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    records = np.random.default_rng(0).bytes(3000 * 50)
    for row in range(50):
        writer.write(records[3000 * row : 3000 * (row + 1)])
    writer.close()
    whole = bytearray(path.read_bytes())
    damage = whole.index(records[3000 * 20 : 3000 * 20 + 64])
    whole[damage : damage + 64] = bytes(64)
    path.write_bytes(whole)
    source = open_source("array_record", str(path))
    with pytest.raises(OSError, match="Corrupted"):
        source[20]
    assert source[19] == records[3000 * 19 : 3000 * 20]
    assert source[21] == records[3000 * 21 : 3000 * 22]
    path.write_bytes(b"no such file")
    with pytest.raises(SourceError, match="cannot be read as ArrayRecord"):
        open_source("array_record", str(path))
