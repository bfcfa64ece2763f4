"""Damaged, cut and foreign lists of every published set: right, or refused in one sentence."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.large import LARGE_SETS
from dinov2_jax.datasets.retrieval import met_set, revisited_set
from dinov2_jax.datasets.transfer import TRANSFER_SETS, transfer_set
from dinov2_jax.datasets.video import kinetics, ssv2, ucf101
from tests.datasets import test_large, test_retrieval, test_transfer, test_video


def build_met(root: Path) -> None:
    root.mkdir()
    test_retrieval.build_met(root)


def build_oxford(root: Path) -> None:
    test_retrieval.build_revisited(root, test_retrieval.truth_of())


def build_kinetics(root: Path) -> None:
    test_video.build_kinetics(root, "blanks")


def build_ssv2(root: Path) -> None:
    root.mkdir()
    test_video.build_ssv2(root, "", ".", "videos")


Build, Open = Callable[[Path], None], Callable[[str], object]
SETS: dict[str, tuple[Build, Open]] = {
    "met": (build_met, met_set),
    "oxford": (build_oxford, lambda root: revisited_set("roxford5k", root)),
    "ucf101": (test_video.build_ucf, lambda root: ucf101(root, "train")),
    "kinetics": (build_kinetics, lambda root: kinetics(root, "train")),
    "ssv2": (build_ssv2, lambda root: ssv2(root, "train")),
}
for _name in LARGE_SETS:
    SETS[_name] = (
        getattr(test_large, f"build_{_name}"),
        lambda root, opened=LARGE_SETS[_name]: (opened(root, "train"), opened(root, "val")),
    )
for _name in TRANSFER_SETS:
    SETS[_name] = (
        getattr(test_transfer, f"build_{_name}"),
        lambda root, name=_name: transfer_set(name, root),
    )
FOREIGN = (
    b"", b"\n", b"\xff\xfe\x00", b"0", b"null", b"[]", b"{}", b"[1, 2]", b'{"a": 1}', b"[{}]",
    b"a,b\nc,d\n", b"one two three four\n", b"\x80\x02]q\x00.", b"\x80\x02}q\x00.",
)  # fmt: skip


def damaged(content: bytes, rng: random.Random, kinds: int) -> bytes:
    kind, place = rng.randrange(kinds), rng.randrange(max(1, len(content)))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content[place + rng.randrange(1, 40) :]
    return content[:place] + rng.randbytes(3) + content[place:]


@pytest.mark.parametrize("name", SETS)
def test_damaged_lists_are_right_or_refused(name: str, tmp_path: Path) -> None:
    build, opened = SETS[name]
    build(tmp_path / "set")
    opened(str(tmp_path / "set"))
    rng = random.Random(name)
    endings = {".jpg", ".png", ".avi", ".mp4", ".webm"}
    lists = [p for p in sorted((tmp_path / "set").rglob("*")) if p.is_file()]
    for path in [p for p in lists if p.suffix not in endings]:
        content = path.read_bytes()
        kinds = 1 if path.suffix == ".mat" else 4  # scipy may crash on changed bytes
        for wrong in (*FOREIGN, *(damaged(content, rng, kinds) for _ in range(12))):
            path.write_bytes(wrong)
            try:
                opened(str(tmp_path / "set"))
            except SourceError as error:
                assert "\n" not in str(error).strip()
        path.write_bytes(content)
