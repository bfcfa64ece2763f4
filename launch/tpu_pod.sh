#!/usr/bin/env bash
# Starts one run on all hosts of a TPU pod slice:
#   launch/tpu_pod.sh NAME ZONE --config=FILE --workdir=DIR [...]
# Every host needs the checkout at ~/dinov2_jax, installed once with
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='cd dinov2_jax &&
#     python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -e ".[tpu]"'
# DIR must be on storage that all hosts mount, such as Filestore. JAX finds the hosts by itself.
# Ctrl-C, or SIGTERM to this script, makes all hosts save the same step and exit.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: launch/tpu_pod.sh NAME ZONE --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

# The bracket keeps pkill from finding the shell that runs it.
stop() {
  signalled=1
  on_all_hosts "pkill -TERM -o -f '[d]inov2_jax.main'" || true
}
signalled=
trap stop TERM INT

# In the background, where Ctrl-C does not reach ssh.
on_all_hosts "cd dinov2_jax && exec .venv/bin/python -u -m dinov2_jax.main $(printf '%q ' "$@")" &
run=$!
while true; do # a signal ends the wait, not the run
  status=0
  wait "$run" || status=$?
  [ "$status" -gt 128 ] && [ -n "$signalled" ] || exit "$status"
  signalled=
done
