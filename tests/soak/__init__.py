"""Trials that take too long for the test suite: python -m tests.soak --help."""
