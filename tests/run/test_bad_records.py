"""Counting, listing and judging what cannot be decoded."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.run.bad_records import BadRecords, TooManyBadRecords


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Records:
    """A source in memory; record i is broken if i is in `broken`."""

    labels = None
    class_names = None

    def __init__(self, number: int, broken: set[int]) -> None:
        self.number, self.broken = number, broken
        self.good = picture()
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> bytes:
        self.read.append(index)
        if index in self.broken:
            raise PermissionError(13, "Permission denied")
        return self.good

    def name(self, index: int) -> str:
        return f"dir/{index}.png"


def batch(used: list[int], bad: list[int]) -> dict[str, np.ndarray]:
    table = np.full((len(used), 8), -1)
    table[range(len(bad)), 0] = bad
    return {"record": np.array(used), "bad_records": table, "masks": np.zeros(1)}


def watch(tmp_path: Path, source: Records, limit: float = 0.01) -> BadRecords:
    return BadRecords(source, DecodeSpec(), tmp_path / "run" / "skipped.txt", limit)


def test_update_takes_the_bookkeeping_and_lists_names(tmp_path: Path) -> None:
    bad = watch(tmp_path, Records(1000, {3, 5}))
    given = batch([1, 2, 4], [3])
    bad.update(given)
    assert list(given) == ["masks"]
    bad.update(batch([7, 8, 9], [5, 3]))
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert listed == "dir/3.png\tPermission denied\ndir/5.png\tPermission denied\n"
    assert len(bad) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["skipped.txt"]


def test_no_list_without_bad_records(tmp_path: Path) -> None:
    bad = watch(tmp_path, Records(50, set()))
    bad.preflight()
    bad.update(batch([1, 2], []))
    assert not (tmp_path / "run").exists()


def test_a_small_source_is_judged_before_training(tmp_path: Path) -> None:
    source = Records(100, {1, 2})
    with pytest.raises(TooManyBadRecords) as caught:
        watch(tmp_path, source).preflight()
    text = str(caught.value)
    for part in ("2 of 100", "dir/1.png, dir/2.png", "skipped.txt", "--config.data.max_bad_frac"):
        assert part in text
    assert "\n" not in text
    watch(tmp_path, source, limit=0.02).preflight()


def test_preflight_of_a_large_source_takes_a_sample(tmp_path: Path) -> None:
    source = Records(10_000, set(range(9)))
    assert watch(tmp_path, source).preflight() == 256
    assert len(set(source.read)) == 256
    assert {0, 9999} <= set(source.read)


def test_ten_bad_ones_are_enough_to_stop(tmp_path: Path) -> None:
    bad = watch(tmp_path, Records(10_000, set(range(20))))
    bad.update(batch(list(range(100, 200)), list(range(9))))  # 9 %, but only nine
    with pytest.raises(TooManyBadRecords, match="10 of 200"):
        bad.update(batch(list(range(200, 300)), [9]))


def test_a_fraction_of_0_allows_none(tmp_path: Path) -> None:
    bad = watch(tmp_path, Records(10_000, {3}), limit=0.0)
    bad.update(batch(list(range(100, 108)), []))
    with pytest.raises(TooManyBadRecords, match="1 of 16 pictures looked at"):
        bad.update(batch(list(range(8)), [3]))


def test_few_bad_ones_are_judged_after_a_pass(tmp_path: Path) -> None:
    bad = watch(tmp_path, Records(300, set(range(5))))
    bad.update(batch(list(range(100)), list(range(5))))
    bad.update(batch(list(range(100, 299)), []))
    with pytest.raises(TooManyBadRecords, match="5 of 300"):
        bad.update(batch([299], []))


def test_more_names_than_fit(tmp_path: Path) -> None:
    source = Records(200, set(range(30)))
    with pytest.raises(TooManyBadRecords, match=r"dir/9\.png, \.\.\.") as caught:
        watch(tmp_path, source).preflight()
    assert "dir/10.png" not in str(caught.value)
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) == 30


def test_state_survives_json_and_keeps_the_share(tmp_path: Path) -> None:
    source = Records(100_000, set(range(20)))
    bad = watch(tmp_path, source)
    bad.update(batch([50] * 5000, list(range(15))))
    state = json.loads(json.dumps(bad.state()))
    again = watch(tmp_path, source)
    again.preflight()
    again.load(state)
    assert len(again) == 15
    again.update(batch([50] * 64, [16]))  # 16 of 5064, not 16 of 320
    source.broken = set(range(3))
    mended = watch(tmp_path, source)
    mended.load(state)
    assert len(mended) == 3


def test_the_list_of_a_resumed_run_is_whole_and_true(tmp_path: Path) -> None:
    source = Records(2000, {0, 3, 4})
    listed = tmp_path / "run" / "skipped.txt"
    bad = watch(tmp_path, source)
    bad.preflight()  # meets 0 only
    bad.update(batch([50] * 900, [3, 4]))
    again = watch(tmp_path, source)
    again.preflight()
    again.load(bad.state())
    assert [line.partition("\t")[0] for line in listed.read_text().splitlines()] == [
        "dir/0.png", "dir/3.png", "dir/4.png"
    ]  # fmt: skip
    source.broken = set()
    mended = watch(tmp_path, source)
    mended.preflight()
    mended.load(bad.state())
    assert not listed.exists()
    listed.write_text("dir/0.png\tof a run that stopped before its first checkpoint\n")
    new = watch(tmp_path, source)
    new.preflight()
    new.load({})
    assert not listed.exists()


def test_odd_names_keep_one_line_each(tmp_path: Path) -> None:
    source = Records(1000, {1})
    source.name = lambda index: "a\tb\nc\udce9.png"  # type: ignore[method-assign]
    bad = watch(tmp_path, source)
    bad.update(batch([5], [1]))
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert listed == "a\\tb\\nc\\udce9.png\tPermission denied\n"
