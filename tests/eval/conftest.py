"""One device for tests of what does not depend on their number: it compiles and runs faster."""

import jax
import pytest


@pytest.fixture
def one_device(monkeypatch):
    """As if there were no others."""
    first = jax.devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *_, **__: first)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_, **__: 1)
