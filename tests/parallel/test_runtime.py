"""Defaults of the command line: kept programs, flags that XLA knows, the share of a GPU."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from dinov2_jax.config.files import user_cache
from dinov2_jax.parallel import runtime
from dinov2_jax.plan.topology import GPU_USABLE


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No variable is set but the user's cache; the settings of JAX come back."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_xla_knows_every_flag():
    """XLA ends a process that is given another one."""
    environment = os.environ | {"XLA_FLAGS": " ".join(runtime.GPU_FLAGS), "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_programs_are_kept_in_the_users_cache(tmp_path, clean):
    runtime.configure()
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(str(tmp_path / "dinov2_jax" / "programs" / f"jax-{jax.__version__}-"))
    assert any(folder in line for line in runtime.describe())
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == str(GPU_USABLE)


def test_where_no_folder_can_be_made_none_is_kept(tmp_path, clean, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    runtime.configure()
    assert jax.config.jax_compilation_cache_dir == before


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert user_cache().parent == Path(tempfile.gettempdir())


def test_what_the_user_set_stays(tmp_path, clean, monkeypatch):
    monkeypatch.setattr(runtime, "_has_gpus", lambda: True)
    mine = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5",
        "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false",
    }
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_compilation_cache_dir
    runtime.configure()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".5"
    assert os.environ["XLA_FLAGS"] == " ".join([mine["XLA_FLAGS"], *runtime.GPU_FLAGS[1:]])
    assert jax.config.jax_compilation_cache_dir == before


def test_an_option_that_the_compiler_does_not_know_costs_only_itself(monkeypatch, caplog):
    """Options of TPUs come and go; the user's own are never dropped."""
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    monkeypatch.setattr(runtime, "STEP_OPTIONS", {"cpu": {"xla_of_another_version": 1}})
    assert runtime.compile_step(lowered, "cpu", {})(1.0) == 2.0
    assert "does not know xla_of_another_version" in caplog.text
    assert any("xla_of_another_version=1" in line for line in runtime.describe())
    with pytest.raises(jax.errors.JaxRuntimeError, match=runtime.UNKNOWN_OPTION):
        runtime.compile_step(lowered, "cpu", {"xla_of_the_user": 1})
