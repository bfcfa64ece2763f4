"""Defaults of the command line: kept programs, flags that XLA knows, the share of a GPU."""

import os
import subprocess
import sys

import jax
import pytest

from dinov2_jax.parallel import runtime
from dinov2_jax.plan.topology import GPU_USABLE


@pytest.fixture
def cache():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_xla_knows_every_flag():
    """XLA ends a process that is given another one."""
    environment = os.environ | {"XLA_FLAGS": " ".join(runtime.GPU_FLAGS), "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_programs_are_kept_in_the_users_cache(tmp_path, cache):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    runtime.configure(environment)
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(str(tmp_path / "dinov2_jax" / "programs" / f"jax-{jax.__version__}-"))
    assert any(folder in line for line in runtime.describe())


def test_what_the_user_set_stays(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(runtime, "_has_gpus", lambda: True)
    mine = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5",
        "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false",
    }
    before, environment = jax.config.jax_compilation_cache_dir, dict(mine)
    runtime.configure(environment)
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".5"
    assert environment["XLA_FLAGS"] == " ".join([mine["XLA_FLAGS"], *runtime.GPU_FLAGS[1:]])
    assert jax.config.jax_compilation_cache_dir == before


def test_the_plan_counts_on_the_same_share(tmp_path, cache):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    runtime.configure(environment)
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == str(GPU_USABLE)
