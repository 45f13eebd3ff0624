#!/usr/bin/env bash
# Runs the fuzz targets: scripts/fuzz.sh [TARGET|all] [SECONDS]
#
# Each target starts from its committed corpus; what it finds on the way goes to a temporary folder. For each it prints
# executions, edges covered and inputs added. A finding ends the script; cargo-fuzz says where the input is.
# Needs cargo-fuzz (`cargo install --locked cargo-fuzz`) and a nightly toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-all}
seconds=${2:-60}

if [ "$target" = all ]; then
    targets=()
    for file in fuzz/fuzz_targets/*.rs; do
        name=${file##*/}
        targets+=("${name%.rs}")
    done
else
    targets=("$target")
fi

grown=$(mktemp -d)
trap 'rm -rf "$grown"' EXIT

for name in "${targets[@]}"; do
    [ -f "fuzz/fuzz_targets/$name.rs" ] || { echo "there is no fuzz target $name" >&2; exit 2; }
    mkdir -p "$grown/$name"
    if ! cargo +nightly fuzz run "$name" "$grown/$name" "fuzz/corpus/$name" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$grown/$name.log" 2>&1; then
        tail -n 40 "$grown/$name.log" >&2
        exit 1
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$grown/$name.log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$grown/$name.log" | tail -n 1)
    printf '%-16s %10s executions, %6s edges, %6s inputs added\n' \
        "$name" "$executions" "$edges" "$(find "$grown/$name" -type f | wc -l)"
done
