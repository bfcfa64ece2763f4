#!/usr/bin/env bash
# Runs all benchmarks of BENCHMARKS.md on a GPU: launch/gpu_benchmarks.sh [--quick] [--dry-run]
#   --quick    2 rounds of half a second: shows that everything runs, with rough numbers
#   --dry-run  prints the commands (also DRY_RUN=1)
# Hardware:  one H100 (80 GB) or H200, 16 cores, 128 GB of memory with 32 GB for /dev/shm (the
#            batches of PyTorch's loader); nothing else may run on it. Both sides of a comparison
#            are in GPU memory at once, so a batch that does not fit is followed by the next
#            smaller one.
# Software:  .venv/bin/pip install -e ".[cuda,bench]", or PYTHON=/path/to/python
# Duration:  not measured yet; the estimate is 3 to 5 hours, most of it PyTorch's autotuning, which
#            --quick does not shorten much. A benchmark is stopped after LIMIT_S (default 3600).
# Variables: OUT (default runs/gpu_benchmarks/DATE), CORES (16), PHOTOS (a folder of JPEG files for
#            end_to_end, such as ImageNet's; default: photographs of installed Python packages).
# Results:   OUT/NAME.json, .txt (tables) and .log of each benchmark; machine.txt, versions.txt; and
#            summary.txt, one table of all benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} out=${OUT:-runs/gpu_benchmarks/$(date -u +%Y-%m-%dT%H%M%SZ)}
cores=${CORES:-16} dry_run=${DRY_RUN:-} quick=()
for argument; do
  case $argument in
    --quick) quick=(--rounds 2 --turn_s 0.5) ;;
    --dry-run) dry_run=1 ;;
    *)
      echo "usage: launch/gpu_benchmarks.sh [--quick] [--dry-run], not $argument" >&2
      exit 2
      ;;
  esac
done

done_well=() failed=()

# bench NAME MODULE ARGUMENT...: runs one benchmark and returns its status.
bench() {
  local name=$1 module=$2 status=0 start=$SECONDS
  shift 2
  local command=("$python" -m "dinov2_jax.bench.$module" --device gpu "$@" "${quick[@]}"
    --json "$out/$name.json")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    return
  fi
  echo "== $name: $(printf '%q ' "${command[@]}")" | tee "$out/$name.log"
  timeout --foreground "${LIMIT_S:-3600}" "${command[@]}" 2>>"$out/$name.log" |
    tee "$out/$name.txt" || status=$?
  echo "== $name: status $status after $((SECONDS - start)) s"
  if [ "$status" -eq 0 ]; then done_well+=("$name"); else failed+=("$name"); fi
  return "$status"
}

# largest NAME MODULE "BATCH BATCH ..." ARGUMENT...: the first batch that fits into memory.
largest() {
  local name=$1 module=$2 batches=$3 batch
  shift 3
  for batch in $batches; do
    bench "${name}_b$batch" "$module" --batch "$batch" "$@" && [ -z "$dry_run" ] && return
    [ -n "$dry_run" ] ||
      grep -qiE 'out of memory|RESOURCE_EXHAUSTED|status -9' "$out/${name}_b$batch.log" || return 0
  done
}

if [ -z "$dry_run" ]; then
  command -v nvidia-smi >/dev/null || {
    echo "error: no nvidia-smi here; this needs an NVIDIA GPU, --dry-run does not" >&2
    exit 2
  }
  mkdir -p "$out"
  { date -u; nvidia-smi; lscpu; free -g; } >"$out/machine.txt"
  { git rev-parse HEAD; git status --short; "$python" --version; "$python" -m pip freeze; } \
    >"$out/versions.txt" || echo "note: versions.txt is incomplete" >&2
fi

bf16=(--dtype bfloat16)
# Our heads give fp32 logits, the reference's give half precision.
bench losses_float32 losses --dtype float32 || true
bench losses_bfloat16 losses "${bf16[@]}" || true
backends=(--peers jax-xla jax-cudnn ours-triton torch)
bench attention attention "${bf16[@]}" --heads 16 --batch 128 --tokens 37 50 197 257 261 \
  "${backends[@]}" || true
bench attention_518px attention "${bf16[@]}" --heads 16 --batch 16 --tokens 1370 \
  "${backends[@]}" || true

for variant in vit_large vit_giant2; do
  bench "features_${variant}_224" features "${bf16[@]}" --variant $variant --size 224 --batch 256 || true
  bench "features_${variant}_518" features "${bf16[@]}" --variant $variant --size 518 --batch 64 || true
done

short=(--config configs/vitl16_short.py "${bf16[@]}")
long=("${bf16[@]}" --variant "" --peers torch torch-compiled) # lightly has no Sinkhorn-Knopp
largest step_s16 step "256 192 128" "${short[@]}" --variant vit_small
largest step_b16 step "128 96 64" "${short[@]}" --variant vit_base
largest step_l16 step "64 48 32 24" "${short[@]}" --variant vit_large
largest step_l14 step "32 24 16 8" --config configs/vitl14.py "${long[@]}"
largest step_g14 step "24 16 12 8 6 4 2" --config configs/vitg14.py "${long[@]}"

files=(--threads "$cores" --workers "$cores" --photos "${PHOTOS:-}" --turn_s 10)
files+=(--peers torch torch-compiled)
largest end_to_end_s16 end_to_end "256 192 128" "${short[@]}" --variant vit_small "${files[@]}"
largest end_to_end_b16 end_to_end "128 96 64" "${short[@]}" --variant vit_base "${files[@]}"
largest end_to_end_l16 end_to_end "64 48 32 24" "${short[@]}" --variant vit_large "${files[@]}"

if [ -z "$dry_run" ]; then
  "$python" -m dinov2_jax.bench.summary "$out" | tee "$out/summary.txt"
  echo "${#done_well[@]} benchmarks measured, ${#failed[@]} failed or incomplete: ${failed[*]}"
  echo "$((SECONDS / 60)) minutes in all; results in $out"
fi
