#!/usr/bin/env bash
# Starts the history server in the background: jobs that have ended, over HTTP. Reads conf/millstream.yaml (data_dir or checkpoint_url,
# history_addr). Flags are handed on to `millstream history`.
set -euo pipefail
cd "$(dirname "$0")/.."
binary="${MILLSTREAM_BIN:-$(command -v millstream || echo target/release/millstream)}"
if ! [ -x "$binary" ]; then
    echo "there is no $binary: put millstream into the PATH, set MILLSTREAM_BIN, or build it: cargo build --release --workspace --bin millstream" >&2
    exit 1
fi
run="${MILLSTREAM_RUN_DIR:-run}"
mkdir -p "$run"
pid_file="$run/history.pid"
if [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; then
    echo "the history server runs already as process $(cat "$pid_file")" >&2
    exit 1
fi
nohup "$binary" history "$@" >"$run/history.log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$pid_file"
for _ in $(seq 100); do
    if grep -q "history of jobs is ready" "$run/history.log"; then
        echo "the history server runs as process $pid; its log is $run/history.log"
        exit 0
    fi
    if ! kill -0 "$pid" 2>/dev/null; then
        cat "$run/history.log" >&2
        rm -f "$pid_file"
        exit 1
    fi
    sleep 0.1
done
echo "the history server is not ready after 10 seconds; see $run/history.log" >&2
exit 1
