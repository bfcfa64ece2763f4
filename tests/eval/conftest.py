"""Fixtures that make tests of evaluation faster, where what they leave out is not tested."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """No file must survive a power cut here; an fsync takes 0.1 s on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
