#!/usr/bin/env bash
# What one H100 or H200 tells in eight minutes: launch/gpu_slice.sh [--dry-run] [--out FILE]
#   --dry-run  every part at toy size on the CPU; shows that all of it runs
#   --out      the JSON file, or a folder for it (default runs/gpu_slice)
# Installs nothing: ${PYTHON:-python} has jax with CUDA, flax, optax, orbax and safetensors; the peers
# need torch, torchvision and timm. dinov2_jax/bench/slice.py says what is measured; --help prints it.
# launch/gpu_benchmarks.sh measures everything and takes hours.
set -euo pipefail
python=${PYTHON:-python}
command -v "$python" >/dev/null || {
  echo "error: there is no $python; set PYTHON=/path/to/python" >&2
  exit 2
}
PYTHONPATH=$(cd "$(dirname "$0")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "$python" -P -m dinov2_jax.bench.slice "$@"
