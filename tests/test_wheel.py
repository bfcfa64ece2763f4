"""The wheel: it holds the recipes inside the package, no benchmarks, and works anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built without a network from a copy: a build leaves files beside setup.py."""
    copy, place = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("dinov2_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-W", "ignore", "-c", BUILD, str(place)]
    found = subprocess.run(build, cwd=copy, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    (file,) = place.glob("*.whl")
    return file


def test_what_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dinov2_jax"}
    packaged = {name.removeprefix("dinov2_jax/") for name in names if ".dist-info" not in name}
    assert not any(name.startswith("bench/") for name in packaged)
    files = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "dinov2_jax").rglob("*")]
    wanted = {
        file.relative_to(ROOT).as_posix().removeprefix("dinov2_jax/")
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert packaged == {name for name in wanted if not name.startswith("bench/")}


def test_it_finds_its_recipes_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(
        "from configs import default, quickstart\nfrom configs.eval import default as evaluation\n"
        "def get_config():\n    config = quickstart.get_config()\n    config.seed = 77\n"
        "    assert evaluation.get_config().task == 'eval'\n    return config\n"
    )

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dinov2_jax.main", *argv],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    for config, line in {
        "quickstart": "--config.total_steps=1500",
        "eval/knn": "--config.protocols=('knn',)",
        "mine.py": "--config.seed=77",
    }.items():
        found = run(f"--config={config}", "--help")
        assert found.returncode == 0 and line in found.stdout.splitlines(), found.stderr
    missing = run("--config=configs/quickstart.py")
    assert missing.stderr == (
        "error: there is no configuration configs/quickstart.py; the nearest one is "
        "--config=quickstart\n"
    )
