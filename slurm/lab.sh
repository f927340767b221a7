#!/usr/bin/env bash
# lab.sh: a real Slurm cluster of several nodes on one machine, for tests.
#
#   lab.sh run CMD...                        up, run CMD in it, wipe; exits with CMD's code
#   lab.sh up | down | wipe | status | env   down keeps the state (jobs come back at up), wipe deletes it
#   lab.sh exec CMD...                       run a client (sbatch, pytest, ...) in a lab that is up
#   lab.sh kill-node NODE | start-node NODE  a power cut, and a return to service
#
# State lives in $SLURM_LAB_DIR. Sizes: SLURM_LAB_{NODES,CPUS,GPUS,MEM}. Two modes, SLURM_LAB_MODE=ns|host|auto:
#   ns    (needs root) one network+mount+uts+pid namespace for the lab and one uts+mount+pid namespace a node: only
#         loopback exists inside, every node has its own hostname that resolves, and down leaves no process behind
#   host  plain processes of the calling user on 127.0.0.1; all nodes share the machine's hostname
# Needs: slurmctld slurmd slurm-client munge iproute2 util-linux (Debian's names).
set -u -o pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

LAB=${SLURM_LAB_DIR:-${TMPDIR:-/tmp}/graticule-lab}
NODES=${SLURM_LAB_NODES:-2}
CPUS=${SLURM_LAB_CPUS:-4}     # a node; may exceed the real ones
GPUS=${SLURM_LAB_GPUS:-2}     # fake ones a node: /dev/null under another name
MEM=${SLURM_LAB_MEM:-4000}    # MB a node
PORT=${SLURM_LAB_PORT:-26800} # slurmctld; slurmd i listens on PORT+10+i
MODE=${SLURM_LAB_MODE:-auto}
WAIT_S=60

say() { echo "lab: $*" >&2; }
die() { say "ERROR: $*"; exit 1; }

mkdir -p "$LAB" || die "cannot create $LAB"
LAB=$(cd "$LAB" && pwd -P)
[ ${#LAB} -le 60 ] || die "SLURM_LAB_DIR is too long for unix sockets: $LAB"
CONF=$LAB/etc/slurm.conf
SELF=$(readlink -f "$0")
export SLURM_CONF=$CONF SLURM_LAB_DIR=$LAB

# --- processes
# A pid is ours only if it is alive, not a zombie, and its command line carries $LAB.
alive() { # alive PID
  local st
  [ -n "${1:-}" ] && [ -r "/proc/$1/stat" ] || return 1
  st=$(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1)
  [ -n "$st" ] && [ "$st" != Z ] && [ "$st" != X ] || return 1
  { tr "\0" " " <"/proc/$1/cmdline"; } 2>/dev/null | grep -qF -- "$LAB/"
}
pid_of() { local p; p=$(cat "$LAB/run/$1.pid" 2>/dev/null) && alive "$p" && echo "$p"; } # pid_of NAME
stop_pid() { # stop_pid PID GRACE_S
  local n
  kill -TERM "$1" 2>/dev/null
  for ((n = 0; n < $2 * 10; n++)); do alive "$1" || return 0; sleep 0.1; done
  kill -KILL "$1" 2>/dev/null
}
spawn() { # spawn NAME CMD...: in the foreground under setsid, so that the recorded pid is the daemon's
  local name=$1; shift
  setsid "$@" >>"$LAB/log/$name.out" 2>&1 </dev/null 9>&- &
  echo $! >"$LAB/run/$name.pid"
}
node_names() { seq -f 'node%.0f' 1 "$NODES"; }
# The settings of a lab that exists win over the environment.
# shellcheck disable=SC1091
load_saved() { if [ -r "$LAB/etc/lab.env" ]; then . "$LAB/etc/lab.env"; fi; }

# --- configuration
write_conf() {
  local n
  install -d -m 755 "$LAB"/{bin,dev,etc,log,run,spool,state}
  install -d -m 711 "$LAB/munge"
  [ -s "$LAB/munge/key" ] || (umask 077 && dd if=/dev/urandom of="$LAB/munge/key" bs=1 count=128 status=none)
  chmod 400 "$LAB/munge/key"
  echo "NODES=$NODES CPUS=$CPUS GPUS=$GPUS MEM=$MEM PORT=$PORT MODE=$MODE" >"$LAB/etc/lab.env"
  slurm_conf >"$CONF"
  { # a gpu needs a File= that is a device
    echo "AutoDetect=off"
    for ((n = 0; n < GPUS; n++)); do
      ln -sfn /dev/null "$LAB/dev/gpu$n"
      echo "NodeName=node[1-$NODES] Name=gpu File=$LAB/dev/gpu$n"
    done
  } >"$LAB/etc/gres.conf"
  # Nothing uses cgroups, yet slurmd loads a plugin for them: v1 does nothing until used, 23.02 can do without.
  if slurmctld -V | awk '{exit !($2 >= "23.02")}'; then echo disabled; else echo cgroup/v1; fi |
    sed 's/^/CgroupPlugin=/' >"$LAB/etc/cgroup.conf"
  { # ns mode mounts it over /etc/hosts
    printf '127.0.0.1 %s\n' localhost ctl
    for n in $(node_names); do echo "127.0.1.${n#node} $n"; done
  } >"$LAB/etc/hosts"
  # Without a database the real sacct refuses to answer and submitit never learns that a job died. This stand-in
  # answers submitit's one query from slurmctld.
  cat >"$LAB/bin/sacct" <<'END'
#!/bin/sh
# stand-in for: sacct -o JobID,State,NodeList --parsable2 -j ID [-j ID ...]
ids=
while [ $# -gt 0 ]; do case $1 in -j) ids="$ids,$2" && shift ;; -o) shift ;; esac; shift; done
echo "JobID|State|NodeList"
exec squeue --noheader --array --states=all ${ids:+--jobs="${ids#,}"} --format='%i|%T|%N'
END
  chmod +x "$LAB/bin/sacct"
}

slurm_conf() {
  local host who n; host=$(hostname) who=$(id -un)
  # cred_expire is also how long a requeued job waits (5 s is its minimum). Job ids start from
  # the clock, so that those of one lab do not come back in the next.
  cat <<END
ClusterName=lab
SlurmctldHost=$([ "$MODE" = ns ] && echo ctl || echo "$host")(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 10))
SlurmUser=$who
SlurmdUser=$who
AuthType=auth/munge
AuthInfo=socket=$LAB/munge/sock,cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.own.pid
SlurmdPidFile=$LAB/run/slurmd.%n.own.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
KillWait=3
MinJobAge=3600
FirstJobId=$(($(date +%s) / 10 % 600000 * 100 + 1))
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=$((MEM / CPUS / 2))
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
END
  # The kernel picks 127.0.0.1 as the source of every loopback connection and slurmstepd calls srun back there: in the
  # namespace bind any address, outside it only this one.
  [ "$MODE" = ns ] || echo "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
  [ "$GPUS" = 0 ] || echo "GresTypes=gpu"
  for n in $(node_names); do
    if [ "$MODE" = ns ]; then
      printf 'NodeName=%s NodeAddr=127.0.1.%s' "$n" "${n#node}"
    else
      printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1' "$n" "$host"
    fi
    printf ' Port=%s CPUs=%s RealMemory=%s' $((PORT + 10 + ${n#node})) "$CPUS" "$MEM"
    [ "$GPUS" = 0 ] || printf ' Gres=gpu:%s' "$GPUS"
    printf ' State=UNKNOWN\n'
  done
  cat <<END
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=nograce Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10 PreemptMode=OFF
END
}
# --- daemons: these run inside the lab
start_munged() {
  local n; pid_of munged >/dev/null && return 0
  rm -f "$LAB"/munge/sock* "$LAB/munge/pid"
  # --force: munged otherwise refuses directories below one that another user owns
  spawn munged munged -F --force --key-file "$LAB/munge/key" --socket "$LAB/munge/sock" \
    --pid-file "$LAB/munge/pid" --log-file "$LAB/log/munged.log" --seed-file "$LAB/munge/seed"
  for ((n = 0; n < 100; n++)); do
    munge -S "$LAB/munge/sock" -n 2>/dev/null | unmunge -S "$LAB/munge/sock" -n >/dev/null 2>&1 && return 0
    sleep 0.05
  done
  tail -3 "$LAB/log/munged.out" >&2; die "munged did not start"
}
start_ctld() {
  local n; pid_of slurmctld >/dev/null && return 0
  spawn slurmctld slurmctld -D -f "$CONF"
  for ((n = 0; n < WAIT_S * 10; n++)); do
    scontrol ping 2>/dev/null | grep -q 'is UP' && return 0
    pid_of slurmctld >/dev/null || break
    sleep 0.1
  done
  tail -5 "$LAB/log/slurmctld.out" >&2; die "slurmctld does not answer"
}
start_node() { # start_node NODE
  pid_of "$1" >/dev/null && return 0
  mkdir -p "$LAB/spool/$1"
  if [ "$MODE" = ns ]; then # a node is a pid namespace: killing the recorded unshare kills all of it at once
    # shellcheck disable=SC2016
    spawn "$1" unshare --uts --mount --pid --fork --kill-child --mount-proc -- env -u SLURM_LAB_INNER \
      bash -c 'hostname "$1"; slurmd -D -f "$2" -N "$1" & wait $!; exit $?' "$LAB/node" "$1" "$CONF"
  else
    spawn "$1" slurmd -D -f "$CONF" -N "$1"
  fi
}
kill_steps() { # kill_steps [NODE]: host mode, this lab's slurmstepds with all their descendants
  local stepd list p
  while read -r stepd list; do
    for p in $list; do
      { tr '\0' '\n' <"/proc/$p/environ"; } 2>/dev/null | awk -v c="SLURM_CONF=$CONF" \
        -v n="${1:+SLURMD_NODENAME=$1}" '$0==c{a=1} $0==n{b=1} END{exit !(a && (n=="" || b))}' || continue
      # the slurmstepd first, so that the death of its tasks is not reported to Slurm
      # shellcheck disable=SC2086
      kill -KILL "$stepd" $list 2>/dev/null
      break
    done
  done < <(ps -e -o pid=,ppid=,comm= | awk '
    {parent[$1]=$2; if ($3=="slurmstepd") step[$1]=1}
    END {for (p in parent) for (q=parent[p]; q>1; q=parent[q]) if (q in step) {below[q]=below[q]" "p; break}
         for (q in below) print q below[q]}')
}
ready_nodes() {
  sinfo -h -N -p main -o '%N %T' 2>/dev/null | awk '$2 ~ /^(idle|mixed|allocated|completing)$/' | sort -u | wc -l
}
inner_up() {
  local n
  start_munged
  start_ctld
  for n in $(node_names); do start_node "$n"; done
  for ((n = 0; n < WAIT_S * 10; n++)); do [ "$(ready_nodes)" = "$NODES" ] && return 0; sleep 0.1; done
  sinfo -R >&2; die "only $(ready_nodes) of $NODES nodes are ready after $WAIT_S s; see $LAB/log"
}
inner_down() {
  local n p
  if pid_of slurmctld >/dev/null; then
    timeout 10 scancel --full -u "$(id -un)" >/dev/null 2>&1
    timeout 10 scancel --signal=KILL --full -u "$(id -un)" >/dev/null 2>&1
    for ((n = 0; n < 50; n++)); do [ -z "$(timeout 5 squeue -h -o %i 2>/dev/null)" ] && break; sleep 0.1; done
  fi
  for n in $(node_names); do
    p=$(pid_of "$n") || continue
    if [ "$MODE" = ns ]; then kill -KILL "$p"; else stop_pid "$p" 5; fi
  done
  [ "$MODE" = ns ] || kill_steps
  for n in slurmctld munged; do p=$(pid_of $n) && stop_pid "$p" 10; done
  rm -f "$LAB"/run/*.pid "$LAB"/munge/sock*
}
inner_kill_node() {
  local p; p=$(pid_of "$1") || die "$1 is not running"
  kill -KILL "$p"
  [ "$MODE" = ns ] || kill_steps "$1"
  rm -f "$LAB/run/$1.pid"
}
inner_status() {
  local n p rc=0
  for n in munged slurmctld $(node_names); do
    if p=$(pid_of "$n"); then echo "$n pid=$p"; else echo "$n DOWN" && rc=1; fi
  done
  timeout 10 sinfo -o '%9P %.6D %.10T %.6c %.8m %.10G %N' 2>/dev/null || rc=1
  timeout 10 squeue 2>/dev/null || rc=1
  [ "$(ready_nodes)" = "$NODES" ] || rc=1
  return $rc
}

# --- the lab's namespace
holder() { local p; p=$(cat "$LAB/run/lab.holder" 2>/dev/null) && alive "$p" && echo "$p"; }
enter() { # enter CMD...: never returns
  local init
  [ -r "$LAB/etc/lab.env" ] || die "no lab in $LAB"
  case ":$PATH:" in *":$LAB/bin:"*) ;; *) PATH="$LAB/bin:$PATH" ;; esac
  if [ "${SLURM_LAB_INSIDE:-}" != "$MODE" ]; then
    export SLURM_LAB_INSIDE=$MODE # verbs called from within the lab enter nothing
    if [ "$MODE" = ns ]; then
      init=$(ps -o pid= --ppid "$(holder)" 2>/dev/null | awk 'NR==1 {print $1}')
      [ -n "$init" ] || die "no lab is running in $LAB"
      exec nsenter -t "$init" -n -m -u -p --wd="$PWD" -- "$@"
    fi
  fi
  exec "$@"
}
inner() { (enter env SLURM_LAB_INNER=1 bash "$SELF" "$@"); }
open_ns() {
  local n; holder >/dev/null && return 0
  rm -f "$LAB/run/lab.ready" "$LAB"/run/*.pid
  # glibc's AI_ADDRCONFIG ignores a host that has 127.0.0.1 only, hence the second address. Clients find the
  # configuration in /etc/slurm even where SLURM_CONF was stripped.
  # shellcheck disable=SC2016
  setsid unshare --net --mount --uts --pid --fork --kill-child --mount-proc -- bash -c '
    ip link set lo up
    ip addr add 127.0.0.2/8 dev lo
    mount --bind "$1/etc/hosts" /etc/hosts
    if [ -d /etc/slurm ]; then mount --bind "$1/etc" /etc/slurm; fi
    hostname ctl
    : >"$1/run/lab.ready"
    trap "exit 0" TERM
    while :; do sleep 3600 & wait $!; done' "$LAB/init" "$LAB" >>"$LAB/log/lab.out" 2>&1 </dev/null 9>&- &
  echo $! >"$LAB/run/lab.holder"
  for ((n = 0; n < 100; n++)); do [ -e "$LAB/run/lab.ready" ] && return 0; sleep 0.05; done
  cat "$LAB/log/lab.out" >&2; die "cannot open the lab's namespace"
}
can_ns() { [ "$(id -u)" = 0 ] && unshare --net --mount --uts --pid --fork --mount-proc true 2>/dev/null; }

# --- verbs
lock() { # one up, down or wipe at a time; fd 9 is closed in every daemon, or the lock would outlive us
  [ -z "${SLURM_LAB_INSIDE:-}" ] || die "not from inside the lab"
  exec 9>"$LAB/.lock"
  flock -w 120 9 || die "another up or down holds $LAB/.lock"
}
cmd_up() {
  local c
  for c in munged slurmctld slurmd sinfo srun sbatch; do
    command -v "$c" >/dev/null || die "$c is missing: apt-get install slurmctld slurmd slurm-client munge"
  done
  if [ -r "$LAB/etc/lab.env" ] && { holder >/dev/null || pid_of slurmctld >/dev/null; }; then
    load_saved # up already, or partly: keep its configuration, start what is missing
  else
    if [ "$MODE" = auto ]; then if can_ns; then MODE=ns; else MODE=host; fi; fi
    [ "$MODE" = host ] || command -v ip >/dev/null || die "ip is missing: apt-get install iproute2"
    [ "$MODE" = ns ] || getent hosts "$(hostname)" | grep -qE '^(127\.|::1)' ||
      die "host mode: $(hostname) does not resolve to loopback, the daemons would listen on the network"
    write_conf
  fi
  if [ "$MODE" = ns ]; then open_ns; fi
  inner inner-up || exit 1
  say "up: $NODES nodes x $CPUS cpus, mode $MODE"
}
cmd_down() {
  local h n; load_saved
  if [ -r "$LAB/etc/lab.env" ] && { [ "$MODE" != ns ] || holder >/dev/null; }; then inner inner-down; fi
  if h=$(holder); then
    kill -KILL "$h" # --kill-child takes the namespace's init, and the kernel the rest
    for ((n = 0; n < 100; n++)); do alive "$h" || break; sleep 0.05; done
  fi
  rm -f "$LAB"/run/*.pid "$LAB"/run/lab.*
}
cmd_wipe() {
  if [ -r "$LAB/etc/lab.env" ]; then cmd_down; fi
  rm -rf "${LAB:?}"/{bin,dev,etc,log,munge,run,spool,state}
  rm -f "$LAB/.lock"
  rmdir "$LAB" 2>/dev/null || say "left other files in $LAB"
}
cmd_run() {
  trap 'bash "$SELF" wipe' EXIT
  bash "$SELF" up && bash "$SELF" exec "$@"
}

cmd_env() {
  [ "$MODE" = host ] || die "mode $MODE: run clients through lab.sh exec"
  echo "export SLURM_CONF='$CONF' SLURM_LAB_DIR='$LAB' SLURM_LAB_INSIDE=host PATH='$LAB/bin':\"\$PATH\""
}

verb=${1:-}
[ $# = 0 ] || shift
case "${SLURM_LAB_INNER:-0}:$verb" in
  0:up | 0:down | 0:wipe) lock && "cmd_$verb" ;;
  0:run) cmd_run "$@" ;;
  0:status) load_saved && inner inner-status ;;
  0:exec) load_saved && enter "$@" ;;
  0:env) load_saved && cmd_env ;;
  0:kill-node | 0:start-node) load_saved && inner "inner-$verb" "${1:?node name}" ;;
  1:inner-up) load_saved && inner_up ;;
  1:inner-down) load_saved && inner_down ;;
  1:inner-status) load_saved && inner_status ;;
  1:inner-kill-node) load_saved && inner_kill_node "$1" ;;
  1:inner-start-node) load_saved && start_node "$1" ;;
  *) sed -n '2,13p' "$SELF" && exit 2 ;;
esac
