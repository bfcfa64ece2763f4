"""Eight virtual CPU devices, quick compilation, and where the reference vectors lie."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time; the tests' small programs need no optimiser.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# Programs that a test's command line compiles are kept beside pytest's own cache.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "programs"),
)

import pytest


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Directory of the reference vectors; DINOV2_JAX_GOLDEN puts others in their place."""
    default = pathlib.Path(__file__).parent / "golden"
    return pathlib.Path(os.environ.get("DINOV2_JAX_GOLDEN", default))


@pytest.fixture
def one_device(monkeypatch):
    """As if there were no others."""
    import jax

    first = jax.devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_, **__: first)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_, **__: 1)
