#!/bin/sh
# Starts a coordinator on this machine, and a worker for each line of conf/workers: `localhost` here, any other host by ssh, where
# Millstream must be in the same folder. Settings come from conf/millstream.yaml of each machine; bin/stop-cluster.sh stops it all.
#
# MILLSTREAM_BIN is the program [bin/millstream or target/release/millstream], MILLSTREAM_RUN the folder of process ids and logs [run].
set -eu
cd "$(dirname "$0")/.."
home=$(pwd)
run=${MILLSTREAM_RUN:-run}
program=${MILLSTREAM_BIN:-}
if [ -z "$program" ]; then
    program=bin/millstream
    [ -x "$program" ] || program=target/release/millstream
fi
if [ ! -x "$program" ]; then
    echo "start-cluster: no program at $program; build it with cargo build --release, or set MILLSTREAM_BIN" >&2
    exit 1
fi
if [ ! -f conf/workers ]; then
    echo "start-cluster: conf/workers is missing: one host a line" >&2
    exit 1
fi
mkdir -p "$run"
if [ -f "$run/coordinator.pid" ] && kill -0 "$(cat "$run/coordinator.pid")" 2>/dev/null; then
    echo "start-cluster: a cluster runs already (process $(cat "$run/coordinator.pid")); stop it with bin/stop-cluster.sh" >&2
    exit 1
fi
hosts=$(sed -e 's/#.*//' -e 's/[[:space:]]//g' conf/workers | grep -v '^$' || true)
workers=$(printf '%s\n' "$hosts" | grep -c . || true)
if [ "$workers" -eq 0 ]; then
    echo "start-cluster: conf/workers names no host" >&2
    exit 1
fi
MILLSTREAM_CLUSTER_WORKERS=${MILLSTREAM_CLUSTER_WORKERS:-$workers} \
    nohup "$program" coordinator >"$run/coordinator.log" 2>&1 </dev/null &
echo $! >"$run/coordinator.pid"
: >"$run/workers"
n=0
for host in $hosts; do
    n=$((n + 1))
    case $host in
    localhost | 127.0.0.1)
        nohup "$program" worker >"$run/worker-$n.log" 2>&1 </dev/null &
        echo "localhost $!" >>"$run/workers"
        ;;
    *)
        # The shell there says the process id of the worker.
        pid=$(ssh "$host" "cd '$home' && mkdir -p '$run' && nohup '$program' worker >'$run/worker-$n.log' 2>&1 </dev/null & echo \$!")
        echo "$host $pid" >>"$run/workers"
        ;;
    esac
done
sleep 1
if ! kill -0 "$(cat "$run/coordinator.pid")" 2>/dev/null; then
    cat "$run/coordinator.log" >&2
    echo "start-cluster: the coordinator has ended" >&2
    "$home/bin/stop-cluster.sh"
    exit 1
fi
echo "A coordinator and $workers workers are starting; logs are in $run. SHOW WORKERS lists them."
