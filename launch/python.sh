# shellcheck shell=bash
# Sourced by the other scripts: finds a Python 3.11-3.13 for $PYTHON and makes virtual environments.

usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
  local candidate
  # pyenv leaves names on PATH that do not run, so each candidate is tried.
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if usable "$candidate"; then
      PYTHON=$candidate
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or set PYTHON=/path/to/python" >&2
  exit 2
}

# make_venv DIR EXTRA: makes a virtual environment with the tested versions and the project. A second
# call with the same requirements does nothing.
make_venv() {
  local dir=$1 extra=$2 stamp
  stamp=$dir/installed-$extra-$(cat requirements.txt setup.py | cksum | cut -d' ' -f1)
  [ -f "$stamp" ] && return
  find_python
  echo "installing into $dir with $("$PYTHON" --version); about 1 GB, one to three minutes" >&2
  "$PYTHON" -m venv "$dir"
  "$dir/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r requirements.txt -e ".[$extra]"
  touch "$stamp"
}
