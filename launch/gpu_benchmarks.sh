#!/usr/bin/env bash
# Measures all that BENCHMARKS.md wants to know of a GPU: launch/gpu_benchmarks.sh [--quick] [--dry-run]
#   --quick    2 rounds of half a second: shows that everything runs, and rough numbers
#   --dry-run  prints the commands (also DRY_RUN=1)
# Hardware:  one H100 (80 GB) or H200, 16 cores, 128 GB of memory, of which /dev/shm may take 32 (the
#            batches of PyTorch's loader), nobody else on it. Both sides of a comparison lie on the GPU
#            at once: on an H100 expect smaller batches of L and g than the goals name; a batch that
#            does not fit is followed by the next smaller one.
# Software:  .venv/bin/pip install -e ".[cuda,bench]", or PYTHON=/path/to/python
# Duration:  not measured yet; an estimate is 3 to 5 hours, most of it PyTorch's autotuning, which
#            --quick does not shorten much. A benchmark is given up after LIMIT_S (default 3600).
# Variables: OUT (default runs/gpu_benchmarks/DATE), CORES (16), PHOTOS (a folder of JPEG files for
#            end to end, such as ImageNet's; default: photographs that Python packages bring along).
# Results:   OUT/NAME.json, .txt (tables) and .log of each benchmark; machine.txt, versions.txt; and
#            summary.txt, the lines of BENCHMARKS.md, a section for the GPU, with the goals:
#   features_*    table "features": ratio to the fastest peer >= 1.1
#   step_*        table "training step": >= 1.2 (L), >= 1.5 (S), L/16 >= 361 images/s, memory <= 0.8
#   losses_*      table "loss block": >= 5 (eager), >= 1.3 (compiled)
#   attention_*   table "attention": what model.attention=auto should choose; no goal
#   end_to_end_*  table "end to end": files / synthetic >= 0.97 (L, B), >= 0.8 (S)
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

# bench NAME MODULE ARGUMENT...: one benchmark; its status, but a failure does not end the script.
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

# largest NAME MODULE "BATCH BATCH ..." ARGUMENT...: the first batch for which memory is enough.
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
# Losses get fp32 logits from our heads, half precision from the reference's.
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
  echo "${#done_well[@]} benchmarks measured, ${#failed[@]} failed or in part: ${failed[*]}"
  echo "$((SECONDS / 60)) minutes in all; results in $out"
fi
