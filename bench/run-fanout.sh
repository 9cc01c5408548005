#!/usr/bin/env bash
# Fan-out of one topic, measured: wellhead, the wire log stripped to nothing, and the kernel's floor, interleaved.
# Writes bench/runs/<date>-<machine>/: README.md (how, on what, the tables) and raw/ (every result as JSON).
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: bench/run-fanout.sh [--ring auto|uring|epoll] [--rates "350 500 1000 2000"] [--repeats 3] [--seconds 20]
                           [--connections 5000] [--idle 15000] [--out DIR] [--no-build]

Environment:
  DURABILITY   memory (default), os or fsync: when the server acknowledges a publication
  PUBLISHERS   connections that publish (8)      BATCH     publications per request (1)
  SERVER_CPU   CPU of the server (0)             LOAD_CPU  CPU of the load generator (1)
  PORT         of wellhead (8010)                WIRELOG_PORT  of the wire log (9010)
  STORE        directory for the server's store (a temporary one; fsync on tmpfs proves nothing)
  WELLHEAD     a wellhead binary to measure instead of the one that is built
--idle 0 leaves the measurement of idle streams out.
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ring=auto rates="350 500 1000 2000" repeats=3 seconds=20 warmup=3 connections=5000 verify=50 idle=15000 out='' build=1
durability=${DURABILITY:-memory} publishers=${PUBLISHERS:-8} batch=${BATCH:-1}
server_cpu=${SERVER_CPU:-0} load_cpu=${LOAD_CPU:-1} port=${PORT:-8010} wirelog_port=${WIRELOG_PORT:-9010}
command_line=$(printf '%q ' bench/run-fanout.sh "$@")

die() {
    echo "run-fanout: $*" >&2
    exit 1
}

while (($#)); do
    case $1 in
        --no-build) build=0 && shift && continue ;;
        -h | --help) usage && exit 0 ;;
        --*) (($# > 1)) || die "$1 needs a value" ;;
        *) usage >&2 && exit 2 ;;
    esac
    case $1 in
        --ring) ring=$2 ;;
        --rates) rates=$2 ;;
        --repeats) repeats=$2 ;;
        --seconds) seconds=$2 ;;
        --connections) connections=$2 ;;
        --idle) idle=$2 ;;
        --out) out=$2 ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift 2
done
for number in $rates "$repeats" "$seconds" "$connections" "$idle"; do
    [[ $number =~ ^[0-9]+$ ]] || die "'$number' is no number"
done
[[ $ring =~ ^(auto|uring|epoll)$ ]] || die "--ring is auto, uring or epoll"
[[ $durability =~ ^(memory|os|fsync)$ ]] || die "DURABILITY is memory, os or fsync"
command -v taskset >/dev/null || die "taskset is missing (util-linux)"
taskset -c "$server_cpu,$load_cpu" true || die "CPUs $server_cpu and $load_cpu are not both there; set SERVER_CPU and LOAD_CPU"

ulimit -n "$(ulimit -Hn)"
limit=$(ulimit -n)
if [[ $limit != unlimited ]]; then
    # The floor holds both ends of its connections in one process.
    ((limit >= connections * 2 + 200)) || die "$((connections * 2 + 200)) file descriptors are needed, $limit allowed: raise ulimit -Hn"
    ((limit >= idle + 200)) || die "--idle $idle needs $((idle + 200)) file descriptors, $limit are allowed"
fi

bin=${CARGO_TARGET_DIR:-$root/target}/release
if ((build)); then
    packages=(-p loadgen -p bench)
    [[ -n ${WELLHEAD:-} ]] || packages+=(-p engine)
    (cd "$root" && cargo build --release "${packages[@]}")
fi
wellhead=${WELLHEAD:-$bin/wellhead}
for program in "$wellhead" "$bin/gusher" "$bin/floor" "$bin/fanout-summary"; do
    [[ -x $program ]] || die "$program is missing; run without --no-build"
done

if [[ -z $out ]]; then
    out=$root/bench/runs/$(date +%F)-$(hostname -s | tr -c 'A-Za-z0-9\n' _)
    again=2
    base=$out
    while [[ -e $out ]]; do
        out=$base-$((again++))
    done
fi
raw=$out/raw

tmp=$(mktemp -d)
pid='' load=''
stop() {
    [[ -n $pid ]] || return 0
    local stopping=$pid tries=0
    pid=''
    kill -TERM "$stopping" 2>/dev/null || true
    while kill -0 "$stopping" 2>/dev/null && ((tries++ < 200)); do sleep 0.1; done
    kill -KILL "$stopping" 2>/dev/null || true
    wait "$stopping" 2>/dev/null || true
}
cleanup() {
    [[ -z $load ]] || kill "$load" 2>/dev/null || true
    stop
    rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Waits until the process $pid has said that it is ready, in file $1.
await_ready() {
    local tries=0
    until grep -qs '^ready ' "$1"; do
        if ! kill -0 "$pid" 2>/dev/null || ((tries++ > 300)); then
            cat "$1" >&2
            die "the server has not become ready"
        fi
        sleep 0.1
    done
}

config=$tmp/wellhead.toml
write_config() {
    cat >"$config" <<EOF
[server]
shards = 1
drain_timeout = "2s"
[[listener]]
bind = "127.0.0.1:$port"
dialects = ["esp"]
[auth]
secret_file = "$tmp/secret"
[store]
path = "$tmp/store"
durability = "$durability"
[limits]
connections = $((connections + idle + 1000))
$1
EOF
}

prepare() {
    (umask 077 && "$wellhead" secret >"$tmp/secret")
    mkdir "$tmp/store"
    # All subscribers come from one address: a limit on that, where there is one, is not what is measured.
    write_config "connections_per_ip = $((connections + idle + 1000))"
    "$wellhead" check-config --config "$config" >/dev/null 2>&1 || write_config ""
    "$wellhead" check-config --config "$config" >"$tmp/check" 2>&1 || die "the configuration is refused: $(cat "$tmp/check")"
    (umask 077 && "$wellhead" token --config "$config" --sub bench --role admin --ttl 24h >"$tmp/token")
    if [[ -n ${STORE:-} ]]; then
        rmdir "$tmp/store"
        ln -s "$(mkdir -p "$STORE" && cd "$STORE" && pwd)" "$tmp/store"
    fi
}

# A server of its own for every measurement, with an empty store.
start_wellhead() {
    find -H "$tmp/store" -mindepth 1 -delete
    # The last server's `ready` must not be taken for this one's.
    rm -f "$tmp/wellhead.log"
    taskset -c "$server_cpu" "$wellhead" serve --config "$config" --ring "$ring" >"$tmp/wellhead.log" 2>&1 &
    pid=$!
    await_ready "$tmp/wellhead.log"
}

# gusher NAME ARGUMENT...: writes raw/NAME.json and raw/NAME.txt. That the server did not keep up is a result too.
gusher() {
    local name=$1
    shift
    echo "== $name"
    # In the background, because a shell that waits for a foreground process does not hear signals.
    "$bin/gusher" sse --server-pid "$pid" --pin "$load_cpu" --json "$raw/$name.json" "$@" >"$raw/$name.txt" &
    load=$!
    wait "$load" || true
    load=''
    cat "$raw/$name.txt"
    [[ -s $raw/$name.json ]] || cp "$tmp/wellhead.log" "$raw/$name.log" 2>/dev/null || true
}

measure_wellhead() {
    local rate=$1 repetition=$2
    start_wellhead
    gusher "wellhead-r$rate-$repetition" --url "http://127.0.0.1:$port" --token-file "$tmp/token" \
        --connections "$connections" --verify "$verify" --rate "$rate" --batch "$batch" --publishers "$publishers" \
        --seconds "$seconds" --warmup "$warmup"
    stop
}

measure_wirelog() {
    local rate=$1 repetition=$2
    rm -f "$tmp/wirelog.log"
    "$bin/floor" wirelog --port "$wirelog_port" --connections "$connections" --rate "$rate" --cpu "$server_cpu" \
        --seconds $((seconds + warmup + 30)) --json "$raw/wirelog-r$rate-$repetition.server.json" \
        >"$tmp/wirelog.log" 2>&1 &
    pid=$!
    await_ready "$tmp/wirelog.log"
    gusher "wirelog-r$rate-$repetition" --url "http://127.0.0.1:$wirelog_port" --no-publish \
        --connections "$connections" --verify "$verify" --seconds "$seconds" --warmup "$warmup"
    # It ends by itself once its subscribers have left, and writes its result.
    local tries=0
    while kill -0 "$pid" 2>/dev/null && ((tries++ < 100)); do sleep 0.1; done
    cat "$tmp/wirelog.log"
    stop
}

measure_floor() {
    echo "== floor-$1"
    "$bin/floor" --connections "$connections" --bytes 394 --joined 1,8,32,128 --seconds 5 \
        --sender-cpu "$server_cpu" --reader-cpu "$load_cpu" --json "$raw/floor-$1.json" | tee "$raw/floor-$1.txt"
}

measure_idle() {
    start_wellhead
    gusher idle-1 --url "http://127.0.0.1:$port" --token-file "$tmp/token" --connections "$idle" --idle --seconds 10
    stop
}

commit() {
    local short
    short=$(git -C "$root" rev-parse --short HEAD 2>/dev/null) || { echo 'commit unknown' && return; }
    echo "commit $short$(git -C "$root" diff --quiet HEAD || echo ', tree changed')"
}

write_readme() {
    cat <<EOF
# Fan-out of one topic

\`\`\`
$command_line
\`\`\`

| | |
|---|---|
| date | $(date -u +%FT%TZ) |
| wellhead | $("$wellhead" version | head -1), $(commit)${WELLHEAD:+, binary $WELLHEAD} |
| rustc | $(rustc --version 2>/dev/null || echo unknown) |
| CPU | $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1) |
| memory | $(awk '/^MemTotal/ {printf "%.1f GiB", $2 / 1048576}' /proc/meminfo) |
| kernel | $(uname -sr) |
| server | 1 shard on CPU $server_cpu, ring $ring${backend:+ ($backend)}, durability $durability, store on $(stat -fLc %T "$tmp/store") |
| load | $connections SSE streams, $verify of them verified; $publishers publishing connections, $batch publications a request; CPU $load_cpu |
| repetitions | $repeats, interleaved, $seconds s each after $warmup s; every one with a server and a store of its own |

The wire log is \`floor wirelog\`: a shared log, a cursor per subscriber, the publisher inside, nothing else. Both are
judged by \`gusher\` with the same streams. CPU is the server's process and ksoftirqd. Latency is from the time a
publication was due to its arrival on a verified stream. Load on the machine beforehand: $(cut -d' ' -f1-3 /proc/loadavg).

EOF
}

prepare
# Once for nothing: it must start, and says which ring it has.
start_wellhead
backend=$(sed -n 's/.*ring"\{0,1\}[=:]"\{0,1\}\([a-z_]*\).*/\1/p' "$tmp/wellhead.log" | head -1)
stop
mkdir -p "$raw"
write_readme >"$out/README.md"
for ((repetition = 1; repetition <= repeats; repetition++)); do
    for rate in $rates; do
        measure_wellhead "$rate" "$repetition"
        measure_wirelog "$rate" "$repetition"
    done
    measure_floor "$repetition"
done
((idle == 0)) || measure_idle
"$bin/fanout-summary" "$raw" | tee -a "$out/README.md"
echo "written to $out"
