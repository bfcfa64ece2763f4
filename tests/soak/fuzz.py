"""Damaged inputs of every kind: each is right, skipped or refused in a sentence, in bounded time.

A case is a kind and a number; the same two give the same bytes.
"""

import dataclasses
import faulthandler
import functools
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax.data.crops import sample_crops
from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, decode, load_record
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.given import Pictures
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.sources.tar import Tar
from dinov2_jax.data.sources.views import with_label_file
from dinov2_jax.errors import UserError
from tests.soak import mutate, seeds

RIGHT, SKIPPED, REFUSED = "right", "skipped", "refused"
LIMIT_S = 20.0  # of one case; a picture of 100 million pixels takes 3 s
MEMORY_MB = 2500  # of one case, beyond the process itself
SEED = 14

# Ways to use a picture once it is decoded.
_FITS = (
    Fit("center_crop", (16,), 20, 4),
    Fit("resize", (16,), 20, 4),
    Fit("resize", (16, 24), 20, 4),
    Fit("pad", (16,), 20, 4),
)


class Hang(BaseException):
    """A case took longer than its limit; no `except Exception` may catch it."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input."""

    seeds: Callable[[], list[bytes]]
    attempt: Callable[[bytes, Path, int], str]  # (input, folder, number) -> what came of it
    share: int  # of 100 cases
    mend: Callable[[bytes], bytes] = bytes  # makes check sums right again
    damage: Callable[[bytes, bytes, mutate.Rng], bytes] = mutate.mutate


def attempt_picture(raw: bytes, folder: Path, number: int) -> str:
    """Decodes a picture as training and extraction do."""
    spec = (WHOLE_RGB, DecodeSpec(max_pixels=4_000_000, min_side_px=16))[number % 2]
    try:
        pixels = decode(raw, spec)
    except BadImage:
        return SKIPPED
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
    assert 0 < pixels.shape[0] * pixels.shape[1] <= spec.max_pixels, pixels.shape
    for fit in _FITS:
        assert fit(pixels).shape[2] == 3
    sample_crops(np.random.default_rng(0), pixels, 1, 16, (0.1, 1.0))
    return RIGHT


def attempt_pillow(raw: bytes, folder: Path, number: int) -> str:
    """Gives a picture that a program has opened with Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on the caller's own call
        path = folder / "picture"
        path.write_bytes(raw)
        try:
            opened = Image.open(path)
            if opened.size[0] * opened.size[1] > 4_000_000:
                return REFUSED  # a program's own pictures have no limit
        except Exception:  # it is the caller who opens it
            return REFUSED
        return _read(Pictures([opened]))


def attempt_array(raw: bytes, folder: Path, number: int) -> str:
    """Decodes a .npy of 3 or of 5 channels."""
    channels = (3, 5)[number % 2]
    try:
        pixels = decode(raw, DecodeSpec(channels=channels))
    except BadImage:
        return SKIPPED
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels
    return RIGHT


def attempt_tar(raw: bytes, folder: Path, number: int) -> str:
    """Opens a tar and reads all its members."""
    (folder / "x.tar").write_bytes(raw)
    return _read(Tar(str(folder / "x.tar")))


def attempt_weights(raw: bytes, folder: Path, number: int) -> str:
    """Loads a backbone, or a head."""
    from dinov2_jax.heads.linear import load_head
    from dinov2_jax.weights.load import load

    path = folder / "x.safetensors"
    path.write_bytes(raw)
    load(path, allow=("float16", "mask_token"), heads=3) if number % 3 else load_head(path, 24)
    return RIGHT


def attempt_settings(raw: bytes, folder: Path, number: int) -> str:
    """Loads a backbone beside a damaged config.json, preprocessor_config.json or index."""
    from dinov2_jax.weights.load import load

    for name in _SETTINGS:
        (folder / name).unlink(missing_ok=True)
    (folder / "model.safetensors").write_bytes(_backbone())
    (folder / _SETTINGS[number % len(_SETTINGS)]).write_bytes(raw)
    load(folder, heads=3)
    return RIGHT


_SETTINGS = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")


def attempt_labels(raw: bytes, folder: Path, number: int) -> str:
    """Reads a file of labels."""
    pictures = folder / "pictures"
    if not pictures.exists():
        seeds.picture_folder(pictures)
    (folder / "labels.txt").write_bytes(raw)
    source = Folder(str(pictures))
    names = ("cat", "dog", "0", "1", "2") if number % 2 else None
    labelled = with_label_file(source, str(folder / "labels.txt"), names)
    labels = labelled.labels
    assert labels is not None and labelled.class_names is not None
    assert len(labels) == len(source) and labels.min() >= -1
    assert labels.max() < len(labelled.class_names)
    "".join(labelled.class_names).encode()  # they go to tables and pages
    return RIGHT


def attempt_list(raw: bytes, folder: Path, number: int) -> str:
    """Reads a list of pictures, and these."""
    pictures = folder / "listed"
    if not pictures.exists():
        seeds.odd_neighbours(seeds.picture_folder(pictures))
    (pictures / "list.txt").write_bytes(raw)
    return _read(Folder(str(pictures / "list.txt")))


def _read(source: Source) -> str:
    """Reads every record, and what a run stores about the source."""
    assert len(source) > 0
    skipped = False
    for row in range(len(source)):
        try:
            load_record(source, row, WHOLE_RGB)
        except BadImage:
            skipped = True
        assert source.name(row)
    describe(source)
    return SKIPPED if skipped else RIGHT


@functools.cache
def _backbone() -> bytes:
    return seeds.tensors()[0]


KINDS = {
    "picture": Kind(seeds.pictures, attempt_picture, 34, mutate.with_png_sums),
    "deep": Kind(seeds.deep_pictures, attempt_picture, 14, mutate.with_png_sums),
    "pillow": Kind(lambda: seeds.pictures() + seeds.deep_pictures(), attempt_pillow, 8),
    "array": Kind(seeds.arrays, attempt_array, 8),
    "tar": Kind(seeds.tars, attempt_tar, 14, mutate.with_tar_sums),
    "weights": Kind(seeds.tensors, attempt_weights, 6, damage=mutate.mutate_tensors),
    "settings": Kind(seeds.settings, attempt_settings, 4, damage=mutate.mutate_json),
    "labels": Kind(seeds.label_files, attempt_labels, 6),
    "list": Kind(seeds.list_files, attempt_list, 6),
}


@functools.cache
def _seeds_of(name: str) -> list[bytes]:
    return KINDS[name].seeds()


def case(name: str, number: int) -> bytes:
    """The bytes of a case; one in a hundred is undamaged."""
    kind, rng = KINDS[name], np.random.default_rng([SEED, list(KINDS).index(name), number])
    whole = _seeds_of(name)
    raw, other = (whole[int(rng.integers(len(whole)))] for _ in range(2))
    if number % 100 == 0:
        return raw
    raw = kind.damage(raw, other, rng)
    return kind.mend(raw) if rng.random() < 0.7 else raw


def run_case(name: str, number: int, folder: Path) -> str:
    """What came of a case; raises what no input may cause, and Hang."""

    def stop(*_: Any) -> None:
        raise Hang(f"more than {LIMIT_S} s")

    raw, before = case(name, number), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        return KINDS[name].attempt(raw, folder, number)
    except (UserError, OSError) as error:
        assert str(error).strip(), "an error without words"
        return REFUSED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_kind(name: str, first: int, count: int, at: Any, results: Any) -> None:
    """Runs the cases of a kind; `at` holds the number at work, in case the process dies."""
    faulthandler.enable()
    found, failures, slowest = Counter[str](), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        run_case(name, 0, Path(folder))  # imports, caches
        start_mb = peak_mb()
        for number in range(first, first + count):
            at.value, start = number, time.monotonic()
            try:
                found[run_case(name, number, Path(folder))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(last.filename).name}:{last.lineno}"
                failures.append(f"{name} {number}: {type(error).__name__} at {place}: {error}")
            slowest = max(slowest, time.monotonic() - start)
    results.put((dict(found), failures, slowest, peak_mb() - start_mb))


def main(budget: int = 10_000, names: str = "", first: int = 0) -> int:
    """10,000 damaged files of nine kinds, each kind in a process of its own. Takes 4 minutes.

    Options: the number of cases, kinds joined by commas, the first number.
    """
    context, failed = multiprocessing.get_context("spawn"), 0
    print("kind       cases   right skipped refused  failed  slowest s  memory MB", flush=True)
    for name in names.split(",") if names else KINDS:
        count = max(1, budget * (100 if names else KINDS[name].share) // 100)
        at, results = context.Value("i", -1), context.Queue()
        process = context.Process(target=run_kind, args=(name, first, count, at, results))
        process.start()
        while results.empty() and process.is_alive():
            process.join(0.2)
        if process.exitcode:
            print(f"{name} {at.value}: the process ended with {process.exitcode}")
            failed += 1
            continue
        found, failures, slowest, memory_mb = results.get()
        process.join()
        failed += len(failures) + (memory_mb > MEMORY_MB)
        parts = "".join(f"{found.get(x, 0):8}" for x in (RIGHT, SKIPPED, REFUSED))
        print(f"{name:9}{count:7}{parts}{len(failures):8}{slowest:11.2f}{memory_mb:11.0f}")
        print("\n".join(failures[:40]), flush=True)
    return int(failed > 0)
