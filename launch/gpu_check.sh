#!/usr/bin/env bash
# launch/gpu_check.sh [DIRECTORY]
#
# All that only a machine with NVIDIA GPUs can show, in one command: builds the cuda preset, runs the tests labelled gpu
# (the CPU is their oracle; sums over NCCL are compared with those over MPI), and measures scoring passes of several
# shapes on one GPU and, where there are more, on 2, 4 and 8 of them over NCCL and over MPI. Writes one new directory
# (default: runs/gpu-check-DATE-TIME): summary.txt, machine.txt, tests.log, tests.xml, and of each measurement its
# .json and .log. What fails does not keep the rest from running.
#
# Exit codes: 0 all passed, 1 something failed, 64 wrong usage, 69 no GPU or no CUDA toolkit, 73 DIRECTORY exists.
set -euo pipefail
. "$(dirname "$0")/common.sh"

case ${1-} in
  -h | --help)
    print_usage "$0"
    exit 0
    ;;
  -*) die "$code_usage" "unknown argument '$1'. Try launch/gpu_check.sh --help." ;;
esac
[ $# -le 1 ] || die "$code_usage" "one directory at most. Try launch/gpu_check.sh --help."
report=${1:-$root/runs/gpu-check-$(date +%Y%m%d-%H%M%S)}
if [ -e "$report" ]; then die 73 "$report exists already. Name another directory."; fi

count_gpus() { nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true; }
gpus=$(count_gpus)
[ "$gpus" -gt 0 ] || die "$code_unsuitable" "no GPU: nvidia-smi is missing or lists none. Run this on a machine with an NVIDIA driver and GPU."
[ -n "$(find_nvcc)" ] || die "$code_unsuitable" "nvcc was not found (looked in PATH, CUDA_HOME and /usr/local/cuda). The cuda preset needs NVIDIA's CUDA toolkit 13."

mkdir -p "$report"
report=$(cd "$report" && pwd -P)
cd "$root"
summary=$report/summary.txt
failed=0

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# try NAME COMMAND...: its output goes to NAME.log; one line in the summary. Never ends the script.
try() {
  local name=$1 start=$SECONDS code=0
  shift
  "$@" >"$report/$name.log" 2>&1 || code=$?
  if [ "$code" = 0 ]; then
    say "$(printf 'passed  %6s s  %s' "$(seconds_since "$start")" "$name")"
  else
    failed=$((failed + 1))
    say "$(printf 'FAILED  %6s s  %s (exit %s, see %s.log)' "$(seconds_since "$start")" "$name" "$code" "$name")"
    tail -n 20 "$report/$name.log"
  fi
}

launch/setup.sh --cuda
launch/build.sh cuda
espalier=$root/build/cuda/bin/espalier

describe_machine() {
  date -u +%FT%TZ
  uname -srm
  nvidia-smi --query-gpu=index,name,driver_version,memory.total,power.limit,pci.bus_id --format=csv
  nvidia-smi topo -m || true
  lscpu || true
  git -C "$root" log -1 --format='commit %H %cI' 2>/dev/null || true
  "$espalier" --version
}
describe_machine >"$report/machine.txt" 2>&1
say "$gpus x $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"

try tests ctest --preset cuda -L gpu --output-junit "$report/tests.xml" --test-output-size-passed 4000000
grep -E '^ *[0-9]+/[0-9]+ Test|Skipped|tests passed|tests failed' "$report/tests.log" | tee -a "$summary" || true

# bench NAME RANKS ARGUMENT...: one measurement, as JSON and as text.
bench() {
  local name=bench-$1 ranks=$2 launcher=()
  shift 2
  if [ "$ranks" -gt 1 ]; then launcher=(mpirun -n "$ranks" --bind-to none); fi
  try "$name" "${launcher[@]}" "$espalier" bench "$@" --out "$report/$name.json"
  sed -n 's/^\(gemm\|pass\|sum\)/  &/p' "$report/$name.log" | tee -a "$summary"
}

both=taylor,taylor_gate
bench small-float32 1 --shape hidden=1024,channels=2816,layers=8,heads=16,kv_heads=4,vocabulary=8192 \
  --dtype float32 --criterion $both --tokens 65536
bench 7b 1 --shape qwen2.5-7b --layers 8 --dtype bfloat16 --criterion $both --tokens 131072
bench 7b-2048 1 --shape qwen2.5-7b --layers 8 --dtype bfloat16 --criterion $both --tokens 131072 --sequence-tokens 2048
bench 32b 1 --shape qwen2.5-32b --layers 8 --dtype bfloat16 --criterion $both --tokens 131072
# One layer's weights and accumulators at a time: what lets any model be scored exactly on one card.
bench 32b-layer-major 1 --shape qwen2.5-32b --layers 8 --dtype bfloat16 --criterion taylor --order layer_major --tokens 131072

# The same work over NCCL and through host memory, with the model split and with the data split.
for ranks in 2 4 8; do
  if [ "$ranks" -gt "$gpus" ]; then
    say "skipped           $ranks GPUs: there are $gpus"
    continue
  fi
  for way in nccl mpi; do
    for tensor in "$ranks" 1; do
      bench "32b-$ranks-ranks-tensor-$tensor-$way" "$ranks" --shape qwen2.5-32b --layers 8 --dtype bfloat16 --criterion $both \
        --tokens 131072 --tensor "$tensor" --collectives "$way"
    done
  done
done

say "$report: $failed failed"
[ "$failed" = 0 ]
