#!/usr/bin/env bash
# Makes .venv-test, then checks format, lint and types and runs all tests. With CI or
# DINOV2_JAX_PARITY set, on Python 3.11, it also compares with PyTorch and transformers. Arguments go
# to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/python.sh
source launch/python.sh

make_venv .venv-test test
python=.venv-test/bin/python
select=(-m "not parity")
if [ -n "${CI:-}${DINOV2_JAX_PARITY:-}" ]; then
  if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "installing PyTorch (CPU) and transformers for the parity tests" >&2
    "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
    "$python" -m pip install --quiet --disable-pip-version-check transformers==5.23.0
    select=()
  else
    echo "the parity tests need Python 3.11 (PyTorch 2.13 for CPU); they are left out" >&2
  fi
fi
.venv-test/bin/ruff format --check .
.venv-test/bin/ruff check .
# Without the path, pyrefly would look for packages in the Python of the PATH.
.venv-test/bin/pyrefly check --python-interpreter-path "$python"
# Compiling takes most of the time, so compiled programs are kept for the next run.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv-test/jax-cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# XLA compiles on one core, so two processes nearly halve the time.
exec "$python" -m pytest -n 2 --dist loadfile "${select[@]}" "$@"
