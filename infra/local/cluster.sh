#!/usr/bin/env bash
# A Ray cluster of this one machine with token authentication, and jobs submitted to it as to a big one.
#
#   infra/local/cluster.sh start                      starts it
#   infra/local/cluster.sh submit VERB [OPTION ...]   submits `python -m jobs VERB OPTION ...`, shows its output, and exits
#                                                     with the job's own code: 0 done, 1 failed, 2 bad input, 3 budget spent,
#                                                     130 interrupted
#   infra/local/cluster.sh ray ARGUMENT ...           Ray's command line, such as `ray job list`, with the token
#   infra/local/cluster.sh stop                       ends it
#   infra/local/cluster.sh quickstart [OPTION ...]    start, submit quickstart, stop
#
# DASS_CLUSTER is its folder (default .local/cluster: token, logs, and the store of `quickstart`); DASS_GCS_PORT and
# DASS_DASHBOARD_PORT are its ports (default 6399, with the two that follow it, and 8265). Only this machine can reach them.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"
folder=${DASS_CLUSTER:-$root/.local/cluster}
gcs_port=${DASS_GCS_PORT:-6399}
dashboard_port=${DASS_DASHBOARD_PORT:-8265}
address=http://127.0.0.1:$dashboard_port

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)  # the token is read, and the store opened, from other folders
# Set for server and client alike: `ray start` turns tokens on by itself, and the command line does not.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token"
export RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-20}
# What Ray Train asks about its actors it would else ask another cluster on this machine, which knows nothing of them.
export RAY_API_SERVER_ADDRESS=$address
unset RAY_ADDRESS

fail() { echo "error: $1" >&2; exit 1; }
# A job that does nothing: the dashboard lists jobs some time before it can start one.
answers() { ray job submit --address "$address" -- true >/dev/null 2>&1; }
is_running() { [ -f "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; }

start() {
    is_running && fail "a cluster of $folder must not run yet, got process $(cat "$folder/pid"); stop it first"
    [ -f "$folder/token" ] || (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token")
    # in a process group of its own, so that `stop` ends this cluster and no other; drained at once, nothing else runs here
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=1 setsid ray start --head --block --port="$gcs_port" \
        --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
        --dashboard-agent-listen-port=$((gcs_port + 1)) --ray-client-server-port=$((gcs_port + 2)) \
        --temp-dir="${DASS_RAY_TEMP:-/tmp/dass-ray-$gcs_port}" >"$folder/ray.log" 2>&1 &
    echo $! >"$folder/pid"
    for _ in $(seq 30); do
        is_running || fail "Ray must start, got: $(tail -n 3 "$folder/ray.log"); see $folder/ray.log"
        answers && { echo "cluster at $address, its token in $folder/token"; return; }
        sleep 1
    done
    fail "Ray must answer at $address within a minute; see $folder/ray.log"
}

submit() {
    is_running || fail "a cluster must run, got none in $folder; run $0 start"
    local id="dass-$1-$(date +%s)-$$" version failed=0
    version=$(git -C "$root" describe --always --dirty --exclude='*' 2>/dev/null) || version=""  # Ray's copy is without .git
    ray job submit --address "$address" --submission-id "$id" --working-dir "$root" \
        --runtime-env-json "{\"env_vars\": {\"DASS_CODE_VERSION\": \"$version\"}}" -- python -m jobs "$@" || failed=$?
    # the command line exits with 1 for every failure; the job's own code is in its details, if it came to be a job
    ADDRESS=$address ID=$id FAILED=$failed python - <<'END'
import os, sys
from ray.job_submission import JobSubmissionClient
try:
    info = JobSubmissionClient(os.environ["ADDRESS"]).get_job_info(os.environ["ID"])
except (RuntimeError, OSError) as error:
    print(f"error: the cluster must know the job {os.environ['ID']}, got: {error}", file=sys.stderr)
    sys.exit(int(os.environ["FAILED"]) or 1)
code = info.driver_exit_code
sys.exit(130 if info.status == "STOPPED" else 1 if code is None else code)
END
}

stop() {
    is_running || return 0
    local pid; pid=$(cat "$folder/pid")
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in $(seq 30); do kill -0 -- "-$pid" 2>/dev/null || break; sleep 1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$folder/pid"
}

case "${1:-}" in
    start) start ;;
    submit) shift; [ $# -gt 0 ] || fail "submit needs a verb, such as: $0 submit quickstart --store \$PWD/dass-store"; submit "$@" ;;
    ray) shift; RAY_ADDRESS=$address ray "$@" ;;
    stop) stop ;;
    quickstart) shift; start; trap stop EXIT; submit quickstart --store "$folder/store" "$@" ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
