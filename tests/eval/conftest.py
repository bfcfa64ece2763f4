"""Fixtures that make tests of evaluation faster, where what they leave out is not tested."""

import os

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


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """No file must survive a power cut here; an fsync takes 0.1 s on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
