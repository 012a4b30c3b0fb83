#!/usr/bin/env bash
# Ends the history server that bin/start-history.sh has started.
set -euo pipefail
cd "$(dirname "$0")/.."
pid_file="${MILLSTREAM_RUN_DIR:-run}/history.pid"
if ! [ -f "$pid_file" ]; then
    echo "no history server was started here" >&2
    exit 1
fi
pid="$(cat "$pid_file")"
kill -TERM "$pid" 2>/dev/null || true
for _ in $(seq 100); do
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$pid_file"
        echo "the history server has ended"
        exit 0
    fi
    sleep 0.1
done
echo "process $pid has not ended within 10 seconds" >&2
exit 1
