"""Batches: shapes, determinism over workers and resumption, replaced records, evaluation."""

import dataclasses
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data import loader as pipeline
from dinov2_jax.data.crops import Box, center_crop, resize_crop, sample_box
from dinov2_jax.data.decode import DecodeSpec, decode, load_record
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.loader import (
    MAX_REPLACEMENTS,
    BatchSpec,
    CropSpec,
    MaskSpec,
    TrainLoader,
)
from dinov2_jax.data.masking import slots_of, upperbound
from dinov2_jax.data.reader import LoaderError
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.stream import stream_pictures

CROPS = CropSpec(32, (0.32, 1.0), 16, (0.05, 0.32), 3)
MASKS = MaskSpec(8, 0.5, (0.1, 0.5))
SPEC = BatchSpec(CROPS, MASKS, DecodeSpec(), batch_size=4, group_size=2, seed=1)


def fill(folder: Path, number: int) -> Folder:
    rng = np.random.default_rng(0)
    for row in range(number):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((60 + row, 48), Image.Resampling.BICUBIC)
        picture.save(folder / f"{row:03d}.jpg")
    return Folder(str(folder))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return fill(tmp_path, 7)


def batches(source: Source, number: int, **changes: Any) -> list[dict[str, np.ndarray]]:
    fields = {field.name for field in dataclasses.fields(SPEC)} & set(changes)
    spec = dataclasses.replace(SPEC, **{name: changes.pop(name) for name in fields})
    loader = TrainLoader(source, spec, **changes)
    found = [{k: v.copy() for k, v in next(loader).items()} for _ in range(number)]
    loader.close()
    return found


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_shapes_and_types(source: Source) -> None:
    (batch,) = batches(source, 1)
    slots = slots_of(upperbound(2, 16, 0.5, (0.1, 0.5)))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "global_crops": ((4, 2, 32, 32, 3), "uint8"),
        "local_crops": ((4, 3, 16, 16, 3), "uint8"),
        "masks": ((4, 2, 16), "bool"),
        "mask_indices": ((2, slots), "int32"),
        "mask_weights": ((2, slots), "float32"),
        "record": ((4,), "int64"),
        "bad_records": ((4, MAX_REPLACEMENTS), "int64"),
    }
    assert (batch["bad_records"] == -1).all()
    for group in range(2):
        flat = batch["masks"][2 * group : 2 * group + 2].reshape(-1)
        chosen = batch["mask_indices"][group][batch["mask_weights"][group] > 0]
        np.testing.assert_array_equal(chosen, np.flatnonzero(flat))


def test_shares_of_processes_make_the_whole_batch(source: Source) -> None:
    """4 groups, dealt to three processes; resumed at batch 3, the pass has long ended."""
    whole = batches(source, 5, batch_size=8)[3:]
    dealt = [[0, 3], [1], [2]]
    shares = [batches(source, 2, batch_size=8, share=s, start_image=24) for s in dealt]
    for n, batch in enumerate(whole):
        for name, value in batch.items():
            groups = np.split(value, 4)
            for share, mine in zip(shares, dealt, strict=True):
                wanted = np.concatenate([groups[g] for g in mine])
                np.testing.assert_array_equal(share[n][name], wanted, err_msg=name)


def test_every_pass_is_complete_and_in_another_order(source: Source) -> None:
    order = np.concatenate([batch["record"] for batch in batches(source, 7)])  # 4 passes of 7
    passes = order.reshape(4, 7)
    assert all(sorted(one) == list(range(7)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 4


def test_crops_of_a_record_differ_between_passes(source: Source) -> None:
    found = batches(source, 4)
    first = [
        batch["global_crops"][row]
        for batch in found
        for row in range(4)
        if batch["record"][row] == 0
    ]
    assert len(first) >= 2
    assert (first[0] != first[1]).any()


def test_seed_changes_order_crops_and_masks(source: Source) -> None:
    one, other = batches(source, 2), batches(source, 2, seed=2)
    for name in ("record", "global_crops", "masks"):
        assert any((a[name] != b[name]).any() for a, b in zip(one, other, strict=True))


def test_resuming_continues_exactly(source: Source) -> None:
    """Seven pictures in batches of four: batch 2 spans two passes."""
    whole = batches(source, 6)
    for start in (1, 2, 5):
        assert_same(batches(source, 6 - start, start_image=4 * start), whole[start:])


def test_workers_do_not_change_batches(source: Source) -> None:
    assert_same(batches(source, 3, workers=2, start_image=4), batches(source, 4, workers=0)[1:])


def test_state_counts_images(source: Source) -> None:
    loader = TrainLoader(source, SPEC, start_image=20)
    next(loader)
    assert loader.state() == {"next_image": 24}
    loader.close()


def test_fewer_pictures_than_a_batch(tmp_path: Path) -> None:
    (batch,) = batches(fill(tmp_path, 1), 1)
    assert batch["record"].tolist() == [0] * 4


def test_no_local_crops(source: Source) -> None:
    spec = CropSpec(32, (0.32, 1.0), 16, (0.05, 0.32), 0)
    loader = TrainLoader(source, dataclasses.replace(SPEC, crops=spec, batch_size=2))
    assert next(loader)["local_crops"].shape == (2, 0, 16, 16, 3)
    loader.close()


def test_bad_records_are_replaced_and_reported(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    source = Folder(str(tmp_path))
    broken = [source.name(row) for row in range(7)].index("broken.jpg")
    found = batches(source, 14)
    records = np.concatenate([batch["record"] for batch in found])
    reported = np.concatenate([batch["bad_records"] for batch in found])
    assert broken not in records
    assert records.min() >= 0
    assert set(reported[reported >= 0]) == {broken}
    assert (reported[:, 0] == broken).sum() == 8  # once a pass
    assert_same(batches(source, 4, start_image=40), found[10:])


def test_nothing_readable_gives_black(tmp_path: Path) -> None:
    for row in range(3):
        (tmp_path / f"{row}.jpg").write_bytes(b"no picture")
    (batch,) = batches(Folder(str(tmp_path)), 1)
    assert (batch["record"] == -1).all()
    assert (batch["bad_records"] >= 0).all()
    assert not batch["global_crops"].any()


def test_unreadable_files_are_bad_records(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "list.txt").write_text("000.jpg\nmissing.jpg\n.\n")  # the last is a directory
    found = batches(Folder(str(tmp_path / "list.txt")), 3)
    reported = np.concatenate([batch["bad_records"].ravel() for batch in found])
    assert set(reported[reported >= 0]) == {1, 2}


def test_large_jpegs_are_decoded_smaller_without_a_visible_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = np.fft.rfft2(rng.standard_normal((3, 600, 800)))
    f = np.hypot(np.fft.fftfreq(600)[:, None] * 600, np.fft.rfftfreq(800) * 800)
    image = np.fft.irfft2(noise / np.maximum(f, 1), (600, 800))
    image = (image / image.std() * 50 + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(image).save(tmp_path / "large.jpg", quality=90)
    source = Folder(str(tmp_path))
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_record", lambda *given: taken.append(load_record(*given)))
        pipeline._load(source, SPEC, 0, rng)
    small, whole = taken[0], decode(source[0])
    assert small.shape == (300, 400, 3)
    for size, scale in ((32, CROPS.global_scale), (16, CROPS.local_scale)):
        errors = []
        for _ in range(20):
            box = sample_box(rng, 300, 400, scale)
            expected = resize_crop(whole, Box(*(2 * side for side in box)), size).astype(int)
            errors.append(np.abs(resize_crop(small, box, size) - expected).mean())
        assert np.mean(errors) < 0.5  # of 255


def test_pictures_for_evaluation_come_in_order_and_once(source: Source) -> None:
    fit, rows = Fit("center_crop", (32,), 36, 8), np.array([6, 0, 3])
    found = list(stream_pictures(source, rows, fit, decoding=DecodeSpec(), workers=0))
    assert [row for row, _ in found] == [6, 0, 3]
    assert all(image is not None and image.shape == (32, 32, 3) for _, image in found)
    np.testing.assert_array_equal(found[2][1], center_crop(decode(source[3]), 36, 32))


def test_evaluation_marks_bad_records(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    source, fit = Folder(str(tmp_path)), Fit("center_crop", (32,), 36, 8)
    found = stream_pictures(source, np.arange(3), fit, decoding=DecodeSpec(), workers=0)
    assert [row if image is not None else -1 for row, image in found] == [0, 1, -1]


def run(script: str) -> subprocess.CompletedProcess:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_workers_end_without_a_word(source: Source, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        from dinov2_jax.data.decode import DecodeSpec
        from dinov2_jax.data.loader import BatchSpec, CropSpec, MaskSpec, TrainLoader
        import numpy as np
        from dinov2_jax.data.fit import Fit
        from dinov2_jax.data.stream import stream_pictures
        from dinov2_jax.data.sources.open import open_source

        if __name__ == "__main__":
            assert not {{"tensorflow", "torch"}} & set(sys.modules)
            source = open_source("folder", {str(tmp_path)!r})
            crops, masks = CropSpec(32, (0.3, 1.0), 16, (0.1, 0.3), 2), MaskSpec(8, 0.5, (0.1, 0.5))
            spec = BatchSpec(crops, masks, DecodeSpec(), batch_size=2, group_size=2, seed=0)
            loader = TrainLoader(source, spec, workers=2)
            kept = next(loader)["global_crops"]
            time.sleep(1)  # until the second worker, never asked so far, has its arrays ready
            loader.close()
            left_early = stream_pictures(source, np.arange(7), Fit("center_crop", (32,), 36, 8),
                                         decoding=DecodeSpec(), workers=1)
            kept_too = next(left_early)
            del left_early
            print(kept.shape)
        """)
    )
    done = run(str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 2, 32, 32, 3)\n", "")


def test_a_private_name_that_grain_moved_breaks_nothing(source: Source, monkeypatch) -> None:
    """Before, one moved file of grain broke every import of this package."""
    monkeypatch.setitem(sys.modules, "grain._src.python.ipc.shared_memory_array", None)
    for name in ("loader", "reader"):
        monkeypatch.delitem(sys.modules, f"dinov2_jax.data.{name}")
        importlib.import_module(f"dinov2_jax.data.{name}")
    assert len(batches(source, 1)) == 1  # closes its loader, too


def test_another_batch_size_continues_at_the_same_picture(source: Source) -> None:
    """Crops and order depend on the picture's place alone, so only the masks' groups move."""
    small = batches(source, 8, batch_size=2)
    for start in (2, 4):
        later = batches(source, 2, batch_size=4, start_image=2 * start)
        pairs = [small[start + 2 * i : start + 2 * i + 2] for i in range(2)]
        for batch, parts in zip(later, pairs, strict=True):
            for name in ("record", "global_crops", "local_crops"):
                joined = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(batch[name], joined)


def test_a_group_size_that_does_not_fit_the_place_is_refused(source: Source) -> None:
    spec = dataclasses.replace(SPEC, batch_size=12, group_size=6)
    with pytest.raises(
        LoaderError, match=r"seen 8 pictures, .* --config\.group_size that divides 4"
    ):
        TrainLoader(source, spec, start_image=8)


@pytest.mark.parametrize("masks", [MaskSpec(8, 0.0, (0.1, 0.5)), MaskSpec(8, 0.5, (0.0, 0.0))])
def test_without_masks_a_group_has_empty_slots(source: Source, masks: MaskSpec) -> None:
    """Also from workers, which cannot hand over an array without elements."""
    for workers in (0, 1):
        (batch,) = batches(source, 1, workers=workers, masks=masks)
        assert not batch["masks"].any()
        assert batch["mask_weights"].shape == (2, 8) and not batch["mask_weights"].any()
