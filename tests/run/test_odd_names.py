"""Names of files that are no UTF-8 or hold line ends, in what a run writes and says."""

import os
from pathlib import Path

import pytest

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.errors import sentence
from dinov2_jax.run.bad_records import BadRecords, TooManyBadRecords

ODD = (b"latin\xff.png", b"a\nb.png", b"a\tb.png", b"a\rb.png", b"<b>.png", b"a,b.png")


def test_skipped_txt_has_a_line_a_picture_and_the_error_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"odd\xfe")
    folder.mkdir()
    for name in ODD:
        (folder / os.fsdecode(name)).write_bytes(b"no picture")
    source = open_source("folder", str(folder))
    bad = BadRecords(source, DecodeSpec(10**6, 3), folder / "skipped.txt", 0.0)
    with pytest.raises(TooManyBadRecords) as raised:
        bad.preflight()
    lines = (folder / "skipped.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(ODD) + 1
    assert all(line.count("\t") == 1 for line in lines[:-1])
    told = sentence(raised.value)
    assert "\n" not in told and "latin\\udcff.png" in told and told.encode("utf-8")
