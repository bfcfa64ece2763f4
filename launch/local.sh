#!/usr/bin/env bash
# Starts N processes of one run on this machine: launch/local.sh N --config=FILE --workdir=DIR [...]
# Process i uses NVIDIA GPU i. Without GPUs, each process has DEVICES virtual CPU devices (default 1).
set -euo pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || [ $# -lt 3 ]; then
  echo "usage: launch/local.sh N --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
count=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
command -v nvidia-smi >/dev/null && gpu=1 || gpu=
[ -n "$gpu" ] ||
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

pids=()
for ((i = 0; i < count; i++)); do
  [ -z "$gpu" ] || export CUDA_VISIBLE_DEVICES=$i
  "$python" -m dinov2_jax.main "$@" --config.distributed.coordinator="127.0.0.1:$port" \
    --config.distributed.processes="$count" --config.distributed.process_id="$i" &
  pids+=($!)
done
# One signal is enough: the processes agree, save the same step and exit.
signalled=
trap 'signalled=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

status=0
for pid in "${pids[@]}"; do
  while true; do # a signal ends the wait, not the process
    code=0
    wait "$pid" || code=$?
    [ "$code" -gt 128 ] && [ -n "$signalled" ] || break
    signalled=
  done
  [ "$code" -eq 0 ] || status=$code
done
[ "$status" -eq 0 ] || echo "a process ended with status $status; the same command continues" >&2
exit "$status"
