#!/bin/sh
# The tests that read from an S3 service: starts moto_server on a free loopback port, makes a bucket, and runs them.
# Needs `pip install 'moto[server,s3]'`. Arguments go to cargo, as in `tests/s3.sh -j1`. MOTO_SERVER names another program.
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
endpoint="http://127.0.0.1:$port"
"${MOTO_SERVER:-moto_server}" -H 127.0.0.1 -p "$port" >"$scratch/moto.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$scratch"' EXIT
tries=0
until curl -s -o /dev/null "$endpoint/"; do
    tries=$((tries + 1))
    if [ $tries -ge 100 ] || ! kill -0 $server 2>/dev/null; then
        cat "$scratch/moto.log" >&2
        exit 1
    fi
    sleep 0.1
done
curl -s -f -o /dev/null -X PUT "$endpoint/bucket"
export MILLSTREAM_S3_ENDPOINT="$endpoint"
# Nothing of the caller's own account may be used, or be reached.
unset AWS_SESSION_TOKEN AWS_ENDPOINT AWS_ENDPOINT_URL AWS_PROFILE 2>/dev/null || true
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtest AWS_REGION=us-east-1
cargo test "$@" --workspace --test it s3:: -- --ignored
cargo test "$@" --workspace --test server in_a_bucket -- --ignored
