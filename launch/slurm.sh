#!/usr/bin/env bash
# One run on many nodes: sbatch --nodes=4 launch/slurm.sh --config=FILE --workdir=DIR [...]
# One process a GPU, which JAX finds from SLURM's variables. DIR must be on storage that all nodes
# share. config.data.workers counts for each process: with 8 GPUs and 96 cores a node, 10 is right.
# 300 s before the time limit, or when the job is preempted, SIGTERM makes all processes save the same
# step. Until the run is complete, the job then goes back to the queue and continues; also when a node
# was lost, from the last checkpoint.
#SBATCH --job-name=dinov2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail
python=${PYTHON:-.venv/bin/python} # sbatch keeps the folder that it was called in
workdir=
for argument; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
: "${workdir:?add --workdir=DIR}"
workdir=${workdir/#\~/$HOME} # bash leaves it as it is after an equals sign
mkdir -p "$workdir"
touch "$workdir/.started" # on the same storage as the report, so by the same clock

# In the background, since bash runs no trap while it waits for a command in the foreground.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-12}" "$python" -m dinov2_jax.main "$@" &
step=$!
signalled=
stopped=
# To the tasks themselves: srun would answer a SIGTERM of its own by killing them unsaved.
trap 'signalled=1; stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
while true; do # a signal ends the wait, not the step
  status=0
  wait "$step" || status=$?
  [ "$status" -gt 128 ] && [ -n "$signalled" ] || break
  signalled=
done

# Only a complete run writes its report. What ended without a signal and without a checkpoint of this
# attempt is a mistake that another attempt would repeat.
saved=$(find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -newer "$workdir/.started" -print -quit \
  2>/dev/null || true)
if ! [ "$workdir/report.html" -nt "$workdir/.started" ] && [ -n "$stopped$saved" ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
  echo "not complete (status $status): back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
