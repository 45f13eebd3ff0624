#!/usr/bin/env bash
# Runs the fuzz targets: scripts/fuzz.sh [TARGET|all] [SECONDS] [SEED]
#
# One build for all. Each target starts from its committed corpus; what it finds on the way goes to a temporary folder.
# For each it prints executions, edges covered and how many inputs the corpus would have. A finding is kept in
# fuzz/artifacts, ends its target, and fails the script when the others have had their time. As many targets run at once as
# there are cores. Without a seed each run tries something else.
# Needs cargo-fuzz (`cargo install --locked cargo-fuzz`) and a nightly toolchain.
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

target=${1:-all}
seconds=${2:-60}
seed=${3:-0}
for number in "$seconds" "$seed"; do
    case $number in
        *[!0-9]*) echo "$number is not a whole number: see scripts/fuzz.sh --help" >&2; exit 2 ;;
    esac
done

if [ "$target" = all ]; then
    targets=()
    for file in fuzz/fuzz_targets/*.rs; do
        name=${file##*/}
        targets+=("${name%.rs}")
    done
    build=()
else
    [ -f "fuzz/fuzz_targets/$target.rs" ] || { echo "there is no fuzz target $target: see fuzz/fuzz_targets" >&2; exit 2; }
    targets=("$target")
    build=("$target")
fi

# No sanitizer: none of this code is unsafe, and without it twice as much is tried.
cargo +nightly fuzz build --sanitizer none "${build[@]}"
built=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release

grown=$(mktemp -d)
trap 'rm -rf "$grown"' EXIT

run() { # run TARGET
    local name=$1 log=$grown/$1.log
    mkdir -p "$grown/$name" "fuzz/artifacts/$name"
    if ! "$built/$name" "$grown/$name" "fuzz/corpus/$name" -artifact_prefix="fuzz/artifacts/$name/" \
        -max_total_time="$seconds" -seed="$seed" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "$name" >>"$grown/findings"
        return 1
    fi
    local executions edges corpus
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    corpus=$(sed -n 's/.* corp: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    printf '%-16s %10s executions, %6s edges, %6s inputs\n' "$name" "$executions" "$edges" "$corpus"
}

export -f run
export grown seconds seed built
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I NAME bash -c 'run NAME' || {
    [ ! -e "$grown/findings" ] || sed 's|.*|&: a finding, see above and fuzz/artifacts/&|' "$grown/findings" >&2
    exit 1
}
