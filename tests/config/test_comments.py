"""The comments of configuration files, as --help and the configuration reference show them."""

from pathlib import Path

from dinov2_jax.config.comments import field_comments

OWN = """
import ml_collections
from configs import default

def get_config():
    config = ml_collections.ConfigDict()
    # How often to blink,
    # at most.
    config.blinks = 3  # per second
    config.bare = 1
    config.left, config.right = _side(), _side()
    config.names = (
        "a"  # behind a part
    )
    config.distributed = default.distributed()
    return config

def _side():
    side = ml_collections.ConfigDict()
    side.width = 2.5  # px
    return side
"""


def test_comments_above_and_behind_a_field(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    fields = field_comments(str(file))
    assert list(fields)[:4] == ["blinks", "bare", "left.width", "right.width"]
    assert fields["blinks"] == (3, "How often to blink, at most. per second")
    assert fields["bare"] == (1, "")
    assert fields["right.width"] == (2.5, "px")
    assert fields["names"] == ("a", "behind a part")
    assert "host:port" in fields["distributed.coordinator"][1]


def test_an_overlay_is_explained_by_its_base() -> None:
    fields, base = field_comments("openmoji"), field_comments("default")
    assert list(fields) == list(base)
    assert fields["optimizer.clip_norm"][1] == base["optimizer.clip_norm"][1]
    assert fields["total_steps"][0] == 2500
