"""Sources opened by the values of a configuration."""

from pathlib import Path

import pytest

from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("foldr", "x"), "data.source='foldr' is none of .* did you mean 'folder'"),
        (("folder", ""), "needs data.path; set --config.data.path"),
        (("openmoji", "", "trian"), "split='trian' .* did you mean 'train'"),
        (("folder", "x", "train", "folder"), "labels='folder' .* did you mean 'folders'"),
        (("tfds", "mnis"), "mnis names no TFDS data set; did you mean 'mnist'"),
    ],
)
def test_wrong_words_give_the_nearest(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(*arguments)


def test_missing_and_empty_paths(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with pytest.raises(FileNotFoundError, match=f"does not exist; did you mean {pictures}"):
        open_source("folder", str(tmp_path / "picturs"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source("array_record", str(tmp_path / "*.array_record"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(SourceError, match="empty holds no picture"):
        open_source("folder", str(tmp_path / "empty"))
    with pytest.raises(SourceError, match=r"holds no \*\.array_record file"):
        open_source("array_record", str(tmp_path / "empty"))
