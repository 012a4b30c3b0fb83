#!/bin/sh
# Stops what bin/start-cluster.sh has started: first the coordinator, which takes a last checkpoint, then the workers.
set -eu
cd "$(dirname "$0")/.."
run=${MILLSTREAM_RUN:-run}
# How long the coordinator may take, in seconds.
patience=30
if [ -f "$run/coordinator.pid" ]; then
    pid=$(cat "$run/coordinator.pid")
    kill "$pid" 2>/dev/null || true
    waited=0
    while kill -0 "$pid" 2>/dev/null; do
        if [ $waited -ge $patience ]; then
            echo "stop-cluster: the coordinator does not end; killing it. Nothing that was acknowledged is lost." >&2
            kill -9 "$pid" 2>/dev/null || true
            break
        fi
        sleep 1
        waited=$((waited + 1))
    done
    rm -f "$run/coordinator.pid"
fi
if [ -f "$run/workers" ]; then
    while read -r host pid; do
        case $host in
        localhost) kill "$pid" 2>/dev/null || true ;;
        *) ssh -n "$host" "kill $pid" 2>/dev/null || true ;;
        esac
    done <"$run/workers"
    rm -f "$run/workers"
fi
