"""Files that are replaced whole, or left as they were."""

import json
from pathlib import Path

import pytest

from dinov2_jax.run.files import replacing, write_bytes, write_json, write_text


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for value in ({"a": 1}, [2]):
        write_json(path, value)
        assert json.loads(path.read_text()) == value
    write_text(path, "odd name \udce9")
    assert path.read_text() == "odd name \\udce9"
    write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
