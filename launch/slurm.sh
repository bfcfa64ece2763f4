#!/usr/bin/env bash
# Runs on many nodes: sbatch --nodes=4 launch/slurm.sh --config=FILE --workdir=DIR [...]
# It starts one process per GPU; JAX finds the others from SLURM's variables. DIR must be on storage
# that all nodes share. config.data.workers counts per process: with 8 GPUs and 96 cores per node, 10
# is right. 300 s before the time limit, or when the job is preempted, SIGTERM makes all processes
# save the same step. Then the job goes back to the queue until the run is complete. If a node is
# lost, it continues from the last checkpoint.
#SBATCH --job-name=dinov2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail
python=${PYTHON:-.venv/bin/python} # sbatch keeps the current folder
workdir=
for argument; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
: "${workdir:?add --workdir=DIR}"
workdir=${workdir/#\~/$HOME} # bash does not expand ~ after an equals sign
mkdir -p "$workdir"
touch "$workdir/.started" # on the storage of the report, so that both times come from one clock

# In the background, because bash runs no trap while it waits for a command in the foreground.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-12}" "$python" -m dinov2_jax.main "$@" &
step=$!
signalled=
stopped=
# The signal goes to the tasks themselves: srun would kill them unsaved if it got SIGTERM itself.
trap 'signalled=1; stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
while true; do # a signal ends the wait, not the step
  status=0
  wait "$step" || status=$?
  [ "$status" -gt 128 ] && [ -n "$signalled" ] || break
  signalled=
done

# Only a complete run writes its report. An attempt that ended without a signal and without a new
# checkpoint failed by a mistake that the next attempt would repeat.
saved=$(find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -newer "$workdir/.started" -print -quit \
  2>/dev/null || true)
if ! [ "$workdir/report.html" -nt "$workdir/.started" ] && [ -n "$stopped$saved" ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
  echo "not complete (status $status): back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
