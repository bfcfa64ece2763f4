"""Task "embed": killed anywhere, continued by the same command, no row missing or doubled."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from configs import embed as embed_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.features import embed as task
from dinov2_jax.features.embed import embed, share
from dinov2_jax.features.extract import extract
from dinov2_jax.features.store import NpyWriter, ShardsError, rows_of_shards
from dinov2_jax.main import main
from tests.features.tiny import write_pictures, write_weights

ROOT = Path(__file__).parents[2]
BROKEN = (0, 33, 57)
COUNT = 58


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Weights and pictures, some of them broken, and their features by the function."""
    root = tmp_path_factory.mktemp("embed")
    weights = write_weights(root / "bundle")
    pictures = write_pictures(root / "pictures", COUNT, BROKEN)
    return weights, pictures


@pytest.fixture(scope="module")
def expected(given):
    return extract(*given, on_error="nan")


def configured(given, **changes):
    config = embed_config.get_config()
    weights, pictures = given
    values = {"weights": str(weights), "data.path": str(pictures), "batch_size": 8}
    config.update_from_flattened_dict(values | {"store.shard_rows": 10} | changes)
    return config


def read_parquet(folder: Path, column: str) -> np.ndarray:
    """[N, ...] of all shards in the order of the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shape = manifest["columns"][column]["shape"] if column in manifest["columns"] else ()
    parts = []
    for file in manifest["files"]:
        found = parquet.read_table(folder / file).column(column).combine_chunks()
        values = found.flatten() if shape else found
        parts.append(values.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    return np.concatenate(parts)


def check_all(folder: Path, expected, broken=BROKEN, kinds=("cls",)) -> None:
    """Every row once, equal to the function's."""
    count = len(expected.names)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == count
    assert manifest["unreadable"] == len(broken)
    names = (folder / "names.txt").read_text().splitlines()
    assert names == expected.names
    lost = [line.split("\t") for line in (folder / "unreadable.txt").read_text().splitlines()]
    assert [(int(row), name) for row, name, _ in lost] == [(r, names[r]) for r in broken]
    if (folder / "cls.npy").exists():
        readable = np.load(folder / "readable.npy")
        arrays = {kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in kinds}
    else:
        np.testing.assert_array_equal(read_parquet(folder, "row"), np.arange(count))
        assert read_parquet(folder, "name").tolist() == names
        readable = read_parquet(folder, "readable")
        arrays = {kind: read_parquet(folder, kind) for kind in kinds}
    assert [int(row) for row in np.flatnonzero(~readable)] == list(broken)
    for kind in kinds:
        np.testing.assert_allclose(arrays[kind], expected[kind], atol=1e-5)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_equals_the_function_in_both_formats(given, tmp_path, capsys, form):
    kinds = ("cls", "mean_patch", "patches", "mask")
    changes = {"features": kinds[:3], "policy": "pad", "size": (8,), "store.format": form}
    embed(configured(given, **changes), str(tmp_path / "out"))
    options = {"policy": "pad", "size": (8,), "on_error": "nan"}
    expected = extract(*given, features=kinds[:3], **options)
    check_all(tmp_path / "out", expected, kinds=kinds)
    said = capsys.readouterr().out
    assert "58 pictures, 3 of them unreadable" in said and "images/s" in said
    embed(configured(given, **changes), str(tmp_path / "out"))
    assert "is complete" in capsys.readouterr().out


def stop_after(monkeypatch, shards: int) -> None:
    """Lets the next call of `embed` die in the midst of a shard."""
    write, count = task._Work._write, [0]

    def dying(self, *rest):
        count[0] += 1
        if count[0] > shards:
            raise RuntimeError("power cut")
        write(self, *rest)

    monkeypatch.setattr(task._Work, "_write", dying)


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_continues_with_another_batch_size(given, expected, tmp_path, monkeypatch, capsys, form):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        stop_after(patch, 2)
        embed(configured(given, **{"store.format": form}), str(tmp_path))
    assert not json.loads((tmp_path / "manifest.json").read_text())["complete"]
    (tmp_path / ".cls.npy.77.tmp").write_bytes(b"what a kill leaves")
    embed(configured(given, **{"store.format": form, "batch_size": 16}), str(tmp_path))
    assert "continues after 20 of 58" in capsys.readouterr().out
    check_all(tmp_path, expected)


def test_a_lost_shard_is_computed_again(given, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stop_after(patch, 3)
        embed(configured(given), str(tmp_path))
    next(tmp_path.glob("features-00001*")).unlink()
    embed(configured(given), str(tmp_path))
    check_all(tmp_path, expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": "pad"}, "fit.policy: center_crop -> pad"),
        ({"features": ("cls", "patches")}, "features: .*patches"),
        ({"layers": (0, -1)}, r"layers: \(2,\) -> \(0, 2\)"),
        ({"norm": False}, "norm: True -> False"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype: float32 -> bfloat16"),
        ({"store.format": "npy"}, "store.format: parquet -> npy"),
        ({"weights": "other"}, "weights: "),
        ({"data.path": "other"}, "pictures.count: 58 -> 3, pictures.names"),
    ],
)
def test_a_changed_setting_is_refused(given, started, tmp_path, changes, named):
    others = {"weights": "bundle", "data.path": "pictures"}
    for field, name in others.items():
        if field in changes:
            changes = {field: str(tmp_path / name)}
    if "weights" in changes:
        write_weights(tmp_path / "bundle", seed=1)
    if "data.path" in changes:
        write_pictures(tmp_path / "pictures", 3)
    with pytest.raises(ShardsError, match=f"{named}.*another --workdir"):
        embed(configured(given, **changes), str(started))


@pytest.fixture(scope="module")
def started(given, tmp_path_factory):
    """A folder of features of these settings."""
    folder = tmp_path_factory.mktemp("started")
    embed(configured(given), str(folder))
    return folder


def test_rows_that_have_gone_are_noticed(given, tmp_path, monkeypatch):
    config = configured(given, **{"store.format": "npy"})
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stop_after(patch, 1)
        embed(config, str(tmp_path))
    (tmp_path / "cls.npy.partial").unlink()
    with pytest.raises(ShardsError, match="has gone"):
        embed(config, str(tmp_path))


def test_float16_holds_or_says_that_it_does_not(given, expected, tmp_path, monkeypatch):
    config = configured(given, **{"store.dtype": "float16", "store.format": "npy"})
    embed(config, str(tmp_path / "half"))
    half = np.load(tmp_path / "half" / "cls.npy")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected["cls"], atol=1e-3, rtol=1e-3)
    monkeypatch.setattr(
        task.Extractor, "empty", lambda self, rows: {"cls": np.full((rows, 24), 7e4, np.float32)}
    )
    monkeypatch.setattr(task.Extractor, "run", lambda *rest: iter(()))
    with pytest.raises(ShardsError, match="7e\\+04, more than float16"):
        embed(config, str(tmp_path / "beyond"))


def test_shares_cover_every_shard_once():
    for shards in (1, 2, 7, 64):
        for processes in (1, 2, 3, 8):
            shares = [share(shards, process, processes) for process in range(processes)]
            assert [shard for part in shares for shard in part] == list(range(shards))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_of_a_shard():
    cls, patches = ((384,), np.dtype(np.float32)), ((1369, 1536), np.dtype(np.float32))
    assert rows_of_shards(50, {"cls": cls}) == 64
    assert rows_of_shards(5_000, {"cls": cls}) == 128
    assert rows_of_shards(10**7, {"cls": cls}) == 8192
    assert rows_of_shards(10**7, {"cls": cls, "patches": patches}) == 16


def test_npy_writes_its_rows_and_no_others(tmp_path):
    layout = {"x": ((2, 3), np.dtype(np.float32)), "ok": ((), np.dtype(bool))}
    writer = NpyWriter(tmp_path, 10, layout)
    assert writer.prepare(done=set()) == set()
    values = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    writer.write(1, 4, ["a"] * 3, {"x": values, "ok": np.ones(3, bool)})
    assert writer.finish() == ["x.npy", "ok.npy"] and writer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy")[4:7], values)
    assert np.load(tmp_path / "x.npy")[[0, 1, 2, 3, 7, 8, 9]].sum() == 0
    np.testing.assert_array_equal(np.flatnonzero(np.load(tmp_path / "ok.npy")), [4, 5, 6])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "add --workdir="),
        (["--workdir=x"], "no weights given"),
        (["--workdir=x", "--config.weights=dinov3"], "neither a path nor one of"),
        (["--workdir=x", "--config.policy=crop"], "did you mean 'center_crop'"),
        (["--workdir=x", "--config.features=cls patches"], "names with commas between"),
        (["--workdir=x", "--config.features=cls,patch"], "did you mean 'patches'"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(given, capsys, flags, sentence):
    weights = [] if "no weights" in sentence else [f"--config.weights={given[0]}"]
    config = f"--config={ROOT / 'configs/embed.py'}"
    assert main(["main", config, f"--config.data.path={given[1]}", *weights, *flags]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_without_pyarrow_says_what_to_install(given, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"dinov2_jax\[parquet\].*store\.format=npy"):
        embed(configured(given), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_no_weights_is_a_sentence(given):
    with pytest.raises(ConfigError, match="no weights given"):
        embed(configured(given, weights=""), "x")


def command(given, folder: Path, **changes) -> list[str]:
    weights, pictures = given
    values = {"weights": weights, "data.path": pictures, "batch_size": 8}
    flags = [f"--config.{name}={value}" for name, value in (values | changes).items()]
    config = f"--config={ROOT / 'configs/embed.py'}"
    return ["main", config, f"--workdir={folder}", *flags]


def start(line: list[str], dies: str = "") -> subprocess.Popen:
    """The command in a process with two devices; `dies` is a program that runs before."""
    program = f"{dies}\nimport sys\nfrom dinov2_jax.main import main\nsys.exit(main({line!r}))"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# SIGKILL at the nth call of a function.
DIES = """
import os, signal, {module} as module
function, calls = module.{name}, [0]
def dying(*rest, **named):
    calls[0] += 1
    if calls[0] == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*rest, **named)
module.{name} = dying
"""


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_killed_twice(tmp_path, form):
    """Once between a shard and its mark, once while a later one is written."""
    broken = (0, 33, 57, 299)
    pictures = write_pictures(tmp_path / "pictures", 300, broken)
    given, folder = (write_weights(tmp_path / "bundle"), pictures), tmp_path / "out"
    line = command(given, folder, **{"store.format": form, "store.shard_rows": 40})
    manifest = "dinov2_jax.features.store"
    # Every shard syncs its columns (npy: 2) or its file (parquet: 1), and the mark.
    synced = {"npy": 3, "parquet": 2}[form]
    for module, name, nth in ((manifest, "Ledger.mark_done", 3), ("os", "fsync", 3 * synced)):
        process = start(line, DIES.format(module=module, name=name, nth=nth))
        said = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, said
        assert not json.loads((folder / "manifest.json").read_text())["complete"]
    last = start(line)
    said = last.communicate()[0]
    assert last.returncode == 0 and "of 300 pictures" in said, said
    check_all(folder, extract(*given, on_error="nan"), broken)


def test_two_processes_take_a_share_each(given, expected, tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    folder, started = tmp_path / "out", []
    for i in range(2):
        where = {"coordinator": place, "processes": 2, "process_id": i}
        where = {f"distributed.{name}": value for name, value in where.items()}
        started.append(start(command(given, folder, **where)))
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "written to" in said[0] and "written to" not in said[1]
    check_all(folder, expected)


def test_two_commands_in_one_folder_do_not_harm_each_other(given, expected, tmp_path):
    """The second waits for the first, then finds everything done."""
    slow = """
import time, dinov2_jax.features.embed as module
write = module._Work._write
module._Work._write = lambda *rest: (time.sleep(0.5), write(*rest))
"""
    both = [start(command(given, tmp_path), slow) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("is complete" in text for text in said) == [False, True], said
    check_all(tmp_path, expected)
