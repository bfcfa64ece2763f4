"""The command line: one sentence and exit status 2 for every mistake, before anything heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, load_config
from dinov2_jax.config.overrides import parse_arguments
from dinov2_jax.errors import sentence
from dinov2_jax.main import explain, main, resolve_config

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py'}"


def resolve(*argv: str) -> ConfigDict:
    return resolve_config(parse_arguments(argv))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error of a command line that main() must refuse with status 2 and one line."""
    assert main(["main", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--config.batchsize=8", "config.batch_size"),
        ("--config.model.patchsize=8", "config.model.patch_size"),
        ("--config.optim.base_lr=1", "config.optimizer.base_lr"),
        ("--config.patch_size=8", "config.model.patch_size"),
        ("--config.data.pth=/x", "config.data.path"),
        ("--config.eval.every=5", "config.eval.every_steps"),
    ],
)
def test_unknown_field_names_the_nearest(
    capsys: pytest.CaptureFixture[str], flag: str, nearest: str
) -> None:
    error = refused(capsys, QUICKSTART, flag)
    assert "unknown field" in error and f"did you mean {nearest}?" in error


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.batch_size=eight", "a whole number (int)"),
        ("--config.batch_size=8.5", "a whole number (int)"),
        ("--config.batch_size", "a whole number (int)"),
        ("--config.optimizer.base_lr=fast", "a number (float)"),
        ("--config.optimizer.base_lr=nan", "a number (float)"),
        ("--config.model.qkv_bias=maybe", "true or false"),
        ("--config.crops.global_scale=0.3", "a tuple of 2 numbers"),
        ("--config.crops.global_scale=(0.3,1,2)", "a tuple of 2 numbers"),
        ("--config.crops.global_scale=(a,b)", "a tuple of 2 numbers"),
        ("--config.model=5", "config.model is a group of fields"),
    ],
)
def test_wrong_type_names_the_expected_one(
    capsys: pytest.CaptureFixture[str], flag: str, expected: str
) -> None:
    assert expected in refused(capsys, QUICKSTART, flag)


def test_missing_config_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, f"--config={ROOT / 'configs/quikstart.py'}", "--workdir=x")
    assert error.endswith("configs/quickstart.py\n")
    assert "add for example --config=quickstart" in refused(capsys, "--workdir=x")


def test_other_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean --workdir?" in refused(capsys, QUICKSTART, "--work_dir=x")
    assert "unexpected argument 'train'" in refused(capsys, "train", QUICKSTART)
    assert "--workdir needs a value" in refused(capsys, QUICKSTART, "--workdir")
    assert "add --workdir=runs/" in refused(capsys, QUICKSTART)
    task = refused(capsys, QUICKSTART, "--workdir=x", "--config.task=trian")
    assert "unknown config.task 'trian'; did you mean 'train'?" in task


def test_overrides_in_both_forms_and_any_order() -> None:
    config = resolve(
        "--config.seed", "7", "--config.mesh.data", "-1", QUICKSTART,
        "--config.crops.global_scale=(0.25,1)", "--config.optimizer.base_lr=1",
        "--config.model.proj_bias", "false", "--config.model.remat=blocks",
        "--config.model.qkv_bias",
        "--config.data.path", "/my pictures", "--config.total_steps=1_000",
    )  # fmt: skip
    assert (config.seed, config.mesh.data, config.total_steps) == (7, -1, 1000)
    assert config.crops.global_scale == (0.25, 1)
    assert config.optimizer.base_lr == 1.0 and isinstance(config.optimizer.base_lr, float)
    assert (config.model.proj_bias, config.model.qkv_bias) == (False, True)
    assert config.model.remat == "blocks"
    assert config.data.path == "/my pictures"
    assert config.is_locked


def test_means_of_any_number_of_channels() -> None:
    config = resolve(QUICKSTART, "--config.colour.mean=(0.5,)", "--config.colour.std=(1,1,0.5,1)")
    assert config.colour.mean == (0.5,)
    assert config.colour.std == (1, 1, 0.5, 1)


def test_the_last_of_two_overrides_counts() -> None:
    assert resolve(QUICKSTART, "--config.seed=1", "--config.seed=2").seed == 2
    scale = resolve(
        QUICKSTART, "--config.crops.global_scale=(0.1,0.2)", "--config.crops.global_scale=(0.3,1.0)"
    ).crops.global_scale
    assert scale == (0.3, 1.0)


def test_a_users_own_file_can_build_on_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from configs import quickstart\n\ndef get_config(arg='0'):\n"
        "    config = quickstart.get_config()\n    config.seed = int(arg)\n    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.py").seed == 0
    assert resolve(f"--config={own}:5", "--config.batch_size=32").seed == 5
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"defines no get_config\(\)"):
        load_config("empty.py")


def run(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dinov2_jax.main", *argv],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_as_a_program_from_the_checkout_and_from_elsewhere(tmp_path: Path) -> None:
    wrong = "--config.batchsize=8"
    here = run("--config=configs/quickstart.py", wrong, cwd=ROOT)
    there = run(QUICKSTART, wrong, cwd=tmp_path, PYTHONPATH=str(ROOT))
    for result in (here, there):
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr == (
            "error: unknown field config.batchsize; did you mean config.batch_size?\n"
        )


def test_help_lists_every_field() -> None:
    result = run("--help", "--config=configs/vitg14.py", cwd=ROOT)
    assert result.returncode == 0
    assert "--config.model.variant='vit_giant2'" in result.stdout
    assert run("--help", cwd=ROOT).stdout.startswith("python -m dinov2_jax.main --config=NAME")


def test_wrong_arguments_are_refused_without_importing_jax() -> None:
    code = (
        "import sys; from dinov2_jax.main import resolve_config, parse_arguments;"
        "resolve_config(parse_arguments(['--config=configs/vitl14.py']));"
        "print('jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "False\n", result.stderr


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    result = run(
        "--config=configs/eval/knn.py", f"--config.checkpoint={tmp_path / 'none'}", cwd=ROOT
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: no weights at {tmp_path / 'none'}")
    assert result.stderr.count("\n") == 1
    shown = run(
        "--config=configs/eval/knn.py",
        f"--config.checkpoint={tmp_path / 'none'}",
        cwd=ROOT,
        DINOV2_JAX_TRACEBACK="1",
    )
    assert "Traceback" in shown.stderr


def test_help_explains_every_field() -> None:
    lines = run("--help", "--config=quickstart", "--config.seed=4", cwd=ROOT).stdout.splitlines()
    seed = lines.index("--config.seed=4")
    assert lines[seed + 1].startswith("    Seeds weights, data order")
    explained = [line for line in lines if line.startswith("    ")]
    assert len(explained) > 100 and max(map(len, explained)) <= 96


FULL = 'RESOURCE_EXHAUSTED: Error writing local file "/a/b": No space left on device [code 28]'


def of_library(module: str, text: str, name: str = "Error") -> Exception:
    """An error of a type of another library."""
    return type(name, (Exception,), {"__module__": module})(text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file or directory", "/a"), "/a: No such file or directory"),
        (OSError(), "OSError"),
        (TimeoutError("two\nlines"), "two lines"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy.io"), "dinov2_jax[eval]"),
        (ImportError("cannot import name 'f'", name="dinov2_jax.eval"), ""),
        (KeyError("a"), ""),
        (OSError(30, "Read-only file system", "/ro/run"), "/ro/run: Read-only file system; name a"),
        (OSError("12288 requested and 4080 written"), "not be written to its end; make room"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (BrokenPipeError(32, "Broken pipe"), "has ended"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB"),
        (of_library("orbax.checkpoint", FULL), "/a/b: No space left on device; make room"),
        (
            of_library("tensorstore", "a read failed\nat byte 5"),
            "tensorstore: a read failed at",
        ),
        (
            of_library("jaxlib", "RESOURCE_EXHAUSTED: Out of memory", "JaxRuntimeError"),
            "batch_size",
        ),
        (ValueError("No space left on device"), ""),
        (ConfigError("no picture \udcff\n<b>,\t.png"), "no picture \\udcff\\n<b>,\\t.png"),
    ],
)
def test_errors_of_the_machine_are_one_sentence(error: Exception, text: str) -> None:
    found = sentence(error)
    assert (
        text in found and bool(found) == bool(text) and "\n" not in found and "Errno" not in found
    )


def test_every_error_that_has_a_sentence_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (OSError(28, "No space left on device", "/a"), of_library("orbax", FULL)):
        for shown in (False, True):
            monkeypatch.delenv("DINOV2_JAX_TRACEBACK", raising=False)
            if shown:
                monkeypatch.setenv("DINOV2_JAX_TRACEBACK", "1")
            assert explain(error) == 2
            printed = capsys.readouterr().err
            assert printed.endswith("then repeat the command\n")
            assert (printed.count("\n") == 1) != shown
