"""Faster tests; the one recipe of `finished`, which comes before this fixture, runs as it is."""

import os

import pytest

from dinov2_jax.stages import run as task


@pytest.fixture(autouse=True)
def quick_recipes(monkeypatch):
    """No file must survive a power cut, and stages of the same shapes share their programs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(task, "_forget_programs", lambda: None)
