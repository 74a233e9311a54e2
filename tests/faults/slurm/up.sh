#!/usr/bin/env bash
# tests/faults/slurm/up.sh DIR
#
# Starts a Slurm of two virtual nodes, n1 and n2, on this machine, for tests: as root or as any other user, without
# services of the system. Everything it writes is in DIR, its ports are free ones, so several can be up at once.
# Then use it with  SLURM_CONF=DIR/slurm.conf sinfo  and the like; down.sh DIR ends it.
#
# Exit codes: 0 both nodes are idle, 64 wrong usage, 69 it does not come up here. The first line says why, the end
# of the log follows.
set -euo pipefail
umask 022
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd -P)
[ $# = 1 ] || { echo "usage: up.sh DIR" >&2; exit 64; }
mkdir -p "$1"
dir=$(cd "$1" && pwd -P)

fail() {  # fail MESSAGE [LOG]
  local log=${2-}
  echo "no Slurm on this machine: $1" >&2
  if [ -n "$log" ] && [ -s "$log" ]; then tail -n 15 "$log" >&2; fi
  env -u ESPALIER_TEST_SLURM "$here/down.sh" "$dir" || true  # not one of those it ends
  exit 69
}

for program in munged slurmctld slurmd sbatch; do
  command -v $program >/dev/null || fail "$program is not installed (Debian: slurm-wlm, munge)"
done

# By these two down.sh finds the daemons, and what they started.
export ESPALIER_TEST_SLURM=$dir SLURM_CONF=$dir/slurm.conf

mkdir -p "$dir"/{state,spool,log,run,munge}
chmod 700 "$dir/munge"
(umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
munged --key-file="$dir/munge/key" --socket="$dir/run/munge.sock" --pid-file="$dir/run/munged.pid" \
  --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --num-threads=2 >"$dir/log/munged.out" 2>&1 ||
  fail "munged does not start: $(tail -n 1 "$dir/log/munged.out")" "$dir/munge/log"

# Below the ports that the system gives to clients.
mapfile -t ports < <(python3 - <<'PY'
import random
import socket

held = []
while len(held) < 3:
    try:
        held.append(socket.create_server(("", random.randrange(20000, 32000))))
    except OSError:
        pass
print(*(one.getsockname()[1] for one in held), sep="\n")
PY
)

# No cgroups, which containers rarely allow. Nodes may claim more cores than there are. The two timeouts make a silent
# node down after some 10 s. A requeued job waits until its old credential is void: two minutes without cred_expire.
host=$(hostname -s)
user=$(id -un)
nodes="n[1-2] Port=[${ports[1]},${ports[2]}]"
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=1
KillWait=5
MessageTimeout=4
SlurmdTimeout=6
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$nodes NodeHostname=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
CONF

slurmctld -c >"$dir/log/slurmctld.out" 2>&1 ||
  fail "slurmctld does not start: $(tail -n 1 "$dir/log/slurmctld.out")" "$dir/log/slurmctld.log"
for node in n1 n2; do
  slurmd -N $node >"$dir/log/slurmd.$node.out" 2>&1 ||
    fail "slurmd $node does not start: $(tail -n 1 "$dir/log/slurmd.$node.out")" "$dir/log/slurmd.$node.log"
done

end=$((SECONDS + 60))
until [ "$(timeout 10 sinfo -h -N -p low -o '%N %T' 2>/dev/null)" = $'n1 idle\nn2 idle' ]; do
  for daemon in slurmctld slurmd.n1 slurmd.n2; do
    pid=$(cat "$dir/run/$daemon.pid" 2>/dev/null || true)
    if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then fail "$daemon ended" "$dir/log/$daemon.log"; fi
  done
  if [ $SECONDS -ge $end ]; then fail "its nodes are not idle after a minute" "$dir/log/slurmctld.log"; fi
  sleep 0.1
done
