#!/usr/bin/env bash
# launch/test.sh [--full]
#
# Sets up, builds and tests everything that this machine can test, then prints one table of what ran, what
# was skipped and why. The last line reads "N passed, N failed, N skipped". Logs stay in build/logs.
#
#   --full   also the long forms: every comparison on every layout, more kills, longer fuzzing, the model of full width
#
# Tests that need trained models look in the directory that ESPALIER_TEST_DATA names, if it is set.
# Exit codes: 0 nothing failed, 1 something did, 64 wrong usage, 69 the machine lacks something.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

full=no
case ${1-} in
  -h | --help)
    print_usage "$0"
    exit 0
    ;;
  --full) full=yes ;;
  "") ;;
  *) die "$code_usage" "unknown argument '$1'. Try launch/test.sh --help." ;;
esac
[ $# -le 1 ] || die "$code_usage" "one argument at most. Try launch/test.sh --help."

begin=$SECONDS
harness=()
if [ $full = yes ]; then harness=(--harness); fi
launch/setup.sh --tests "${harness[@]}"

python=$root/.venv/bin/python
logs=$root/build/logs
mkdir -p "$logs"
rm -f "$logs/failures"  # what failed under CTest, said again at the end
export OMP_NUM_THREADS=1
if [ $full = yes ]; then export ESPALIER_TEST_FULL=1 ESPALIER_FUZZ_SECONDS=60; fi

rows=()
total_passed=0
total_failed=0
total_skipped=0

# row NAME PASSED FAILED SKIPPED SECONDS [WHY]
row() {
  rows+=("$(printf '%-34s %6s %6s %7s %7s  %s' "$1" "$2" "$3" "$4" "$5" "${6-}")")
  total_passed=$((total_passed + $2))
  total_failed=$((total_failed + $3))
  total_skipped=$((total_skipped + $4))
  printf '%s: %s passed, %s failed, %s skipped, %s s\n' "$1" "$2" "$3" "$4" "$5"
}

skip() { row "$1" 0 0 1 0 "skipped: $2"; }

# check NAME COMMAND...: one check, passed when the command returns 0. Returns 1 when it failed.
check() {
  local name=$1 start=$SECONDS log
  shift
  log=$logs/${name//[^a-zA-Z0-9]/-}.log
  if "$@" >"$log" 2>&1; then
    row "$name" 1 0 0 "$(seconds_since "$start")"
  else
    tail -n 60 "$log"
    row "$name" 0 1 0 "$(seconds_since "$start")" "see ${log#"$root"/}"
    return 1
  fi
}

# counted NAME START CODE LOG KIND RESULT_FILE...: a row from the counts of a finished test run.
counted() {
  local name=$1 start=$2 code=$3 log=$4 counts why
  shift 4
  IFS=$'\t' read -r counts why < <("$python" tests/support/count_results.py "$@") || true
  local passed=0 failed=1 skipped=0
  read -r passed failed skipped <<<"${counts:-0 1 0}"
  if [ "$code" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
  if [ "$passed" = 0 ] && [ "$failed" = 0 ] && [ "$skipped" = 0 ]; then
    failed=1
    why="no test ran"
  fi
  if [ "$failed" != 0 ]; then
    tail -n 80 "$log"
    why="see ${log#"$root"/}${why:+; skipped: $why}"
  elif [ "$skipped" != 0 ]; then
    why="skipped: $why"
  fi
  row "$name" "$passed" "$failed" "$skipped" "$(seconds_since "$start")" "$why"
}

run_ctest() {  # run_ctest NAME PRESET
  local name=$1 preset=$2 start=$SECONDS code=0
  local junit=$logs/$preset.xml log=$logs/ctest-$preset.log
  rm -f "$junit"
  ctest --preset "$preset" -j "$(cores_here)" --output-junit "$junit" --test-output-size-passed 4000000 \
    --test-output-size-failed 4000000 --label-exclude '^check$' >"$log" 2>&1 || code=$?
  counted "$name" "$start" "$code" "$log" ctest "$junit"
  [ ! -f "$junit" ] || "$python" tests/support/count_results.py failures "$junit" >>"$logs/failures" || true
}

# Every file in a process of its own: what one imports or sets in the environment is not the others'.
run_python() {  # run_python NAME [FOLDER OF PACKAGES]
  local name=$1 start=$SECONDS code=0
  local folder=$logs/${name//[^a-zA-Z0-9]/-}
  rm -rf "$folder"
  mkdir -p "$folder"
  # shellcheck disable=SC2016  # expanded by the inner shell
  PYTHONPATH=${2-} folder=$folder python=$python xargs -P "$(cores_here)" -I{} sh -c \
    '"$python" -m unittest discover -v -s tests/python -p {} >"$folder/{}.log" 2>&1' \
    < <(cd tests/python && ls test_*.py) || code=$?
  grep -hE '^(ERROR|FAIL): |^(.*Error|Exception): ' "$folder"/*.log >"$folder/failures" || true
  counted "$name" "$start" "$code" "$folder/failures" unittest "$folder"/*.log
}

check_tidy() {
  # Clang cannot read the headers that GCC compiled beforehand.
  cmake --preset ci -B build/tidy -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON
  run-clang-tidy-14 -quiet -j "$(cores_here)" -p build/tidy -extra-arg=-Wno-unknown-warning-option \
    "^$root/src/.*\\.cpp" 2>/dev/null |
    tee /dev/stderr | { ! grep -q 'warning:\|error:'; }
}

# A model of 1.2 B parameters; asserts no times.
run_scale() {
  launch/build.sh release
  "$python" tests/bench/scale.py --espalier build/release/bin/espalier --out "$logs/scale.json"
}

# Room for 8 GB of files; asserts no times either.
run_export_rate() {
  launch/build.sh release
  "$python" tests/bench/export_rate.py --espalier build/release/bin/espalier --out "$logs/export-rate.json"
}

check_format() {
  local files
  mapfile -t files < <(git ls-files '*.h' '*.cpp' '*.cu')
  clang-format --dry-run -Werror "${files[@]}" 2>&1 | sed -n 's/^\([^:]*\):[0-9]*:[0-9]*: error:.*/\1/p' | sort | uniq -c |
    awk '{print $2 ": " $1 " places"; bad = 1} END {if (bad) print "clang-format -i FILE mends them"; exit bad}'
}

# Other versions of clang-format lay out some lines in another way.
format_version=14
if ! command -v clang-format >/dev/null; then
  skip "format" "no clang-format"
elif ! clang-format --version | grep -q "version $format_version\."; then
  skip "format" "the tree is laid out by clang-format $format_version, this is $(clang-format --version | grep -o 'version [0-9]*')"
elif ! git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  skip "format" "not a git clone"
else
  check "format" check_format || true
fi
check "includes between modules" cmake -P cmake/CheckIncludes.cmake || true
check "every promise has its test" "$python" tests/support/promises.py --check || true

if check "build ci" launch/build.sh ci; then
  check "public headers compile alone" cmake --build --preset ci -j "$(jobs_allowed)" --target public_headers || true
  run_ctest "unit, MPI and program tests" ci
else
  skip "public headers compile alone" "not built"
  skip "unit, MPI and program tests" "not built"
fi

if check "build asan" launch/build.sh asan; then
  run_ctest "address and undefined sanitizers" asan
else
  skip "address and undefined sanitizers" "not built"
fi

if [ $full = no ]; then
  skip "sanitizers, with LibTorch" "a long form: launch/test.sh --full"
elif check "build asan-torch" launch/build.sh asan-torch; then
  run_ctest "sanitizers, with LibTorch" asan-torch
else
  skip "sanitizers, with LibTorch" "not built"
fi

transformers5=$("$python" -c 'import importlib.metadata as m; print(m.version("transformers"))')
run_python "Python, transformers $transformers5"
for version in 4.57.1 4.49.0; do
  run_python "Python, transformers $version" "$root/.venv/transformers-$version"
done

if [ $full = yes ] && command -v run-clang-tidy-14 >/dev/null; then
  check "clang-tidy" check_tidy || true
else
  skip "clang-tidy" "a long form that needs clang-tidy 14: launch/test.sh --full"
fi

if [ $full = yes ]; then
  # The table of figures is in build/logs/scale-beside-transformers.log and build/logs/scale.json.
  check "scale beside transformers" run_scale || true
  check "export beside the disk" run_export_rate || true
else
  skip "scale beside transformers" "a long form: launch/test.sh --full"
  skip "export beside the disk" "a long form: launch/test.sh --full"
fi

if [ -n "$(find_nvcc)" ]; then
  check "build cuda" launch/build.sh cuda || true
else
  skip "build cuda" "no nvcc"
fi

echo
printf '%-34s %6s %6s %7s %7s  %s\n' "" passed failed skipped seconds "why"
printf '%s\n' "${rows[@]}"
printf '%-34s %6s %6s %7s %7s\n' "all" "$total_passed" "$total_failed" "$total_skipped" "$(seconds_since "$begin")"
echo
if [ -s "$logs/failures" ]; then
  head -c 20000 "$logs/failures"
  echo
fi
echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
[ "$total_failed" = 0 ]
