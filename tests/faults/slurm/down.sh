#!/usr/bin/env bash
# tests/faults/slurm/down.sh DIR
#
# Ends the Slurm that up.sh DIR started, with its jobs and whatever they left. DIR stays.
# Exit codes: 0 nothing of it runs any more, 1 something does, 64 wrong usage.
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
[ $# = 1 ] || { echo "usage: down.sh DIR" >&2; exit 64; }
[ -d "$1" ] || exit 0
dir=$(cd "$1" && pwd -P)
export SLURM_CONF=$dir/slurm.conf

# Daemons bear the mark of up.sh; of all that has this configuration in its environment, jobs alone have a number.
left() {
  {
    grep -lzxF "ESPALIER_TEST_SLURM=$dir" /proc/[0-9]*/environ
    grep -lzxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURM_JOB_ID='
  } 2>/dev/null | cut -d / -f 3 | sort -u
}

wait_until() {  # wait_until SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# A daemon that a job still needs does not end.
no_jobs() { [ -z "$(timeout 5 squeue -h 2>/dev/null)" ]; }
if kill -0 "$(cat "$dir/run/slurmctld.pid" 2>/dev/null)" 2>/dev/null; then
  timeout 5 scancel --state=PENDING 2>/dev/null || true
  timeout 5 scancel --state=RUNNING 2>/dev/null || true
  wait_until 15 no_jobs || true
fi
nothing_left() { [ -z "$(left)" ]; }
for daemon in slurmd.n1 slurmd.n2 slurmctld munged; do
  pid=$(cat "$dir/run/$daemon.pid" 2>/dev/null || true)
  # A number may be another process's by now.
  if [ -n "$pid" ] && grep -qx "$pid" <<<"$(left)"; then kill "$pid" 2>/dev/null || true; fi
done
wait_until 5 nothing_left || true
kill_left() {
  local pids
  mapfile -t pids < <(left)
  [ ${#pids[@]} = 0 ] && return
  kill -9 "${pids[@]}" 2>/dev/null || true
  return 1
}
wait_until 10 kill_left || { echo "still running: $(left | tr '\n' ' ')" >&2; exit 1; }
