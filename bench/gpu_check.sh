#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: build for it, test on it, measure it, and leave a report.
# Usage: bench/gpu_check.sh [FOLDER]     (default: build/gpu-check; about ten minutes)
#   TORCH    what to install as torch (default: torch>=2.10)
#   MINUTES  what the benchmarks may take together (default: 4)
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu-check}
seconds=$((${MINUTES:-4} * 60))
mkdir -p "$out"

command -v nvidia-smi > /dev/null || { echo "gpu_check: there is no nvidia-smi here" >&2; exit 1; }
# One architecture, the GPU's own: a release's seven take longer than all the rest.
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(nvidia-smi --query-gpu=compute_cap \
  --format=csv,noheader | sort -u | paste -sd' ')}"
export CNNKERN_CUDA=1

{
  echo "# cnnkern on a GPU"
  echo
  echo "Commit $(git describe --always --dirty), $(date -u +%Y-%m-%dT%H:%MZ), for $TORCH_CUDA_ARCH_LIST."
  echo
  nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm --format=csv
} > "$out/report.md"

failed=0
# step NAME LIMIT COMMAND...: its output goes to NAME.log, how it ended to the report.
step() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  echo "gpu_check: $name" >&2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed=1
  {
    printf '\n## %s: %s, %d s\n\n```\n' "$name" \
      "$([ $status -eq 0 ] && echo passed || echo "failed with status $status")" $((SECONDS - begin))
    tail -n "${LINES_KEPT:-40}" "$out/$name.log"
    echo '```'
  } >> "$out/report.md"
}

step build 600 make build
step info 60 .venv/bin/python -m cnnkern info
step test 600 .venv/bin/python -m pytest -q -m gpu
LINES_KEPT=2000
step conv-and-pool $seconds .venv/bin/python -m bench.cudnn --quick --csv "$out/cudnn.csv"
step chart 60 .venv/bin/python -m bench.chart --cudnn "$out/cudnn.csv"
step lenet 120 .venv/bin/python -m bench.lenet --device cuda --quick --csv "$out/lenet.csv"
step lenet-graph 120 .venv/bin/python -m bench.lenet --device cuda --graph --quick
echo "gpu_check: $out/report.md" >&2
exit $failed
