#!/usr/bin/env bash
# launch/build.sh [PRESET]
#
# Configures and builds espalier. PRESET is release (the default), dev, ci, asan, asan-torch or cuda; the
# program is then build/PRESET/bin/espalier. Run launch/setup.sh first.
#
# Exit codes: 0 built, 64 wrong usage, 69 a tool is missing, otherwise the compiler's.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

preset=release
case ${1-} in
  -h | --help)
    print_usage "$0"
    exit 0
    ;;
  "") ;;
  release | dev | ci | asan | asan-torch | cuda) preset=$1 ;;
  *) die "$code_usage" "unknown preset '$1'. Known: release, dev, ci, asan, asan-torch, cuda." ;;
esac
[ $# -le 1 ] || die "$code_usage" "one preset at most. Try launch/build.sh --help."
for tool in cmake ninja; do
  command -v $tool >/dev/null || die "$code_unsuitable" "$tool was not found. Run launch/setup.sh."
done

arguments=(--preset "$preset")
if [ -f "$tools/torch-dir" ]; then
  arguments+=("-DESPALIER_TORCH_DIR=$(cat "$tools/torch-dir")")
elif [ "$preset" != asan ] && ! [ -x .venv/bin/python ]; then
  die "$code_unsuitable" "no LibTorch: neither .venv nor a directory given to launch/setup.sh --torch. Run launch/setup.sh."
fi
if [ "$preset" = cuda ]; then
  nvcc=$(find_nvcc)
  [ -n "$nvcc" ] || die "$code_unsuitable" "nvcc was not found (looked in PATH, CUDA_HOME and /usr/local/cuda). The cuda preset needs NVIDIA's CUDA toolkit 13."
  arguments+=("-DCUDAToolkit_ROOT=$(dirname "$(dirname "$nvcc")")")
fi

step "configure $preset" cmake "${arguments[@]}"

start=$SECONDS
quiet=()
# On a terminal ninja shows one line of progress; elsewhere only what fails is of use, but all of it.
if ! [ -t 1 ]; then quiet=(-- --quiet -k 0); fi
cmake --build --preset "$preset" -j "$(jobs_allowed)" "${quiet[@]}"
result="tests in build/$preset/bin"
if [ -x "build/$preset/bin/espalier" ]; then result="build/$preset/bin/espalier"; fi
echo "build $preset: $(seconds_since "$start") s, $result"
