"""Features for evaluation: stored once, shared by jobs, mended in place, or streamed."""

import json
import threading
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.features import cache as module
from dinov2_jax.features import embed, repair
from dinov2_jax.features.cache import FeatureCache, Wanted
from dinov2_jax.features.extract import extract
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.rows import RowView
from tests.features.tiny import backbone, write_pictures

# 64 of 80 are in the key; these are not among them.
COUNT, BROKEN = 80, (4, 9)
WANTED = Wanted(20, 16, cls_blocks=2, mean_patch=True)


def config(max_bad=2):
    data = {"workers": 0, "max_pixels": 10**8, "max_bad": max_bad}
    return ConfigDict({"batch_size": 16, "compute_dtype": "float32", "data": data})


@pytest.fixture(scope="module")
def tiny():
    return backbone()


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", COUNT, BROKEN)


def sampled():
    return set(np.unique(np.linspace(0, COUNT - 1, 64).astype(int)))


@pytest.fixture
def counted(monkeypatch):
    """Rows that were computed."""
    rows, place = [], Extractor.place

    def counting(self, arrays, computed, first_row=0):
        rows.extend(computed.rows.tolist())
        return place(self, arrays, computed, first_row)

    monkeypatch.setattr(Extractor, "place", counting)
    return rows


def expected(tiny, pictures, block):
    return extract(tiny, pictures, layers=(block,), on_error="nan")["cls"]


def test_unreadable_pictures_are_left_out_without_a_copy(tiny, pictures, tmp_path):
    source = open_source("folder", str(pictures), split="all")
    cache = FeatureCache(tmp_path / "features", tiny, config())
    found = cache.features(source, "train", WANTED)
    assert found.unreadable == 2 and len(found.labels) == COUNT - 2
    for column, block in zip(found.cls, (1, 2), strict=True):
        assert isinstance(column, RowView) and column.shape == (COUNT - 2, 24)
        want = np.delete(expected(tiny, pictures, block), BROKEN, axis=0)
        np.testing.assert_allclose(np.asarray(column), want, atol=1e-5)
    (folder,) = (tmp_path / "features").glob("train-*/*")
    assert {path.name for path in folder.glob("*.npy")} == {
        "cls_block_1.npy",
        "cls_block_2.npy",
        "mean_patch_block_2.npy",
        "readable.npy",
    }
    whole = cache.features(source, "train", WANTED, keep_unreadable=True)
    assert len(whole.cls[0]) == COUNT and np.isnan(whole.cls[0][BROKEN[0]]).all()


def test_repaired_pictures_are_computed_in_place(tiny, pictures, tmp_path, counted, monkeypatch):
    assert not set(BROKEN) & sampled()
    source = open_source("folder", str(pictures), split="all")
    cache = FeatureCache(tmp_path / "features", tiny, config())
    before = cache.features(source, "train", WANTED)
    old = np.asarray(before.cls[1])
    assert len(counted) == COUNT - 2
    decoded, why = [], repair.why_unreadable
    monkeypatch.setattr(
        repair, "why_unreadable", lambda s, row, d: (decoded.append(row), why(s, row, d))[1]
    )
    for _ in range(3):  # nothing has changed: decoded once more, and never again
        cache.features(source, "train", WANTED)
    assert decoded == list(BROKEN) and len(counted) == COUNT - 2
    names = sorted(path.name for path in pictures.iterdir())
    (pictures / names[9]).write_bytes((pictures / names[8]).read_bytes())
    smaller = Wanted(20, 16)  # a protocol that reads one of the three columns mends all of them
    assert len(cache.features(source, "train", smaller).labels) == COUNT - 1
    assert counted[COUNT - 2 :] == [0] and decoded == [*BROKEN, 9]
    after = cache.features(source, "train", WANTED)
    new = np.asarray(after.cls[1])
    np.testing.assert_array_equal(np.delete(new, 8, axis=0), old)  # bit for bit
    np.testing.assert_allclose(new, np.delete(expected(tiny, pictures, 2), 4, 0), atol=1e-5)
    assert np.isfinite(after.mean_patch).all()
    (folder,) = (tmp_path / "features").glob("train-*/*")
    assert (folder / "unreadable.txt").read_text().startswith("4\t")
    assert json.loads((folder / "manifest.json").read_text())["unreadable"] == 1


def test_jobs_that_share_a_folder_compute_it_once(tiny, tmp_path, counted, monkeypatch, capsys):
    pictures = write_pictures(tmp_path / "pictures", 20)
    write = embed._Work._write

    def slow(self, *rest):
        time.sleep(1.0)
        write(self, *rest)

    monkeypatch.setattr(embed._Work, "_write", slow)
    found, errors = [], []

    def job():
        try:
            source = open_source("folder", str(pictures), split="all")
            cache = FeatureCache(tmp_path / "features", tiny, config())
            found.append(np.asarray(cache.features(source, "train", WANTED).cls[1]))
        except Exception as error:
            errors.append(error)

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert not errors and len(found) == 2
    np.testing.assert_array_equal(*found)
    assert sorted(counted) == list(range(20))
    assert "waits for process" in capsys.readouterr().out
    assert not list((tmp_path / "features").rglob(".*"))


def test_a_folder_of_an_earlier_version_still_opens(tiny, tmp_path, counted, monkeypatch):
    source = open_source("folder", str(write_pictures(tmp_path / "pictures", 4)), split="all")
    cache = FeatureCache(tmp_path / "features", tiny, config())
    cache.features(source, "train", WANTED)
    (path,) = (tmp_path / "features").glob("*/*/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["settings"]["features_version"]  # as version 0.1.0 wrote it
    path.write_text(json.dumps(manifest))
    cache.features(source, "train", WANTED)
    assert len(counted) == 4
    monkeypatch.setattr(module, "FEATURES_VERSION", 2)  # features are others: never reused
    cache.features(source, "train", WANTED)
    assert len(counted) == 8


def test_streamed_features_equal_the_stored_ones(tiny, pictures, tmp_path):
    source = open_source("folder", str(pictures), split="all")
    cache = FeatureCache(tmp_path / "features", tiny, config())
    stored = cache.features(source, "train", WANTED, keep_unreadable=True)
    seen = []
    for rows, columns in cache.stream(source, WANTED):
        seen += rows.tolist()
        np.testing.assert_allclose(columns["cls_block_2"], stored.cls[1][rows], atol=1e-5)
        np.testing.assert_allclose(
            columns["mean_patch_block_2"], stored.mean_patch[rows], atol=1e-5
        )
    assert sorted(seen) == [row for row in range(COUNT) if row not in BROKEN]
    strict = FeatureCache(tmp_path / "features", tiny, config(max_bad=1))
    with pytest.raises(SourceError, match=r"2 of 80 pictures cannot be decoded.*max_bad=2"):
        list(strict.stream(source, WANTED))
    with pytest.raises(SourceError, match=r"2 of 80 pictures of train cannot be.*unreadable.txt"):
        strict.features(source, "train", WANTED)


def test_names_are_hashed_once(tiny, pictures, tmp_path, monkeypatch):
    source, asked = open_source("folder", str(pictures), "all"), []
    plain = type(source).name
    monkeypatch.setattr(type(source), "name", lambda s, row: (asked.append(row), plain(s, row))[1])
    for _ in range(2):
        cache = FeatureCache(tmp_path / "cache", tiny, config())
        cache.holds(source, "train", WANTED)
        cache.features(source, "train", WANTED)
    # For the key, for the list beside the features, and for the shards that are written.
    assert len(asked) <= 3 * COUNT + 8


def test_sources_that_cannot_be_remembered_are_hashed_too():
    class Slots:
        __slots__ = ()
        __hash__ = None

        def __len__(self):
            return 3

        def name(self, row):
            return f"{row}.png"

    assert names_fingerprint(Slots()) == names_fingerprint(Slots())
