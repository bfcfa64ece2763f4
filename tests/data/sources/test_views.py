"""Label files: class names stay as they are written."""

from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.data.sources.source import SourceError, notes_of
from dinov2_jax.data.sources.views import View, with_label_file


def labelled(tmp_path: Path, *lines: str, class_names: tuple[str, ...] | None = None) -> View:
    source = Arrays([np.zeros((2, 2, 3), np.uint8)] * len(lines))
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    return with_label_file(source, str(tmp_path / "labels.txt"), class_names)


def test_dense_numbers_are_their_own_labels(tmp_path: Path) -> None:
    """By value, not by spelling: 10 comes after 9."""
    source = labelled(tmp_path, *map(str, range(11)))
    assert source.class_names == tuple(map(str, range(11)))
    assert source.labels.tolist() == list(range(11))


def test_ids_are_names_and_take_no_memory(tmp_path: Path) -> None:
    """Before, 1000000 made 1,000,001 classes."""
    source = labelled(tmp_path, "1000000", "7", "", "7", "9" * 5000)
    assert source.class_names == ("7", "1000000", "9" * 5000)
    assert source.labels.tolist() == [1, 0, -1, 0, 2]


def test_one_number_written_in_two_ways_is_refused(tmp_path: Path) -> None:
    """Before, 007 and 7 became one class in silence."""
    with pytest.raises(SourceError, match="writes one class as '007' and as '7'"):
        labelled(tmp_path, "007", "7", "a")


def test_folders_whose_names_are_numbers_with_zeros(tmp_path: Path) -> None:
    """Before, 003 was refused as the class 3, which the training set does not have."""
    source = labelled(tmp_path, "007", "003", class_names=("003", "007"))
    assert source.labels.tolist() == [1, 0]
    with pytest.raises(SourceError, match="has the class '3', which the training set does not"):
        labelled(tmp_path, "3", "007", class_names=("003", "007"))


def test_words_and_numbers_together_are_words(tmp_path: Path) -> None:
    assert labelled(tmp_path, "b", "10", "9", "a").class_names == ("10", "9", "a", "b")


def test_lines_with_names_come_in_any_order(tmp_path: Path) -> None:
    source = labelled(tmp_path, "[1]\tb", "[0]\t a ")
    assert (source.class_names, source.labels.tolist()) == (("a", "b"), [0, 1])
    with pytest.raises(SourceError, match=r"has no line for 1 of 2 pictures, such as \[1\]"):
        labelled(tmp_path, "[0]\ta", "[2]\tb")


def test_a_view_keeps_the_notes_of_its_source() -> None:
    source = Arrays([np.zeros((2, 2, 3), np.uint8)])
    source.notes = ("one picture was left out",)
    assert notes_of(View(source, None, None)) == ("one picture was left out",)
