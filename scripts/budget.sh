#!/usr/bin/env bash
# Measures each program that scripts/budget.toml has a budget for, and fails where one takes more: scripts/budget.sh
#
# It builds what is not built (scripts/cross.sh says what that takes for ARM), and measures in bytes of the stripped program
# and in KiB of memory: idle, 10 s after its session began (`consensus-testbed footprint`), and loaded, under requests of
# the data plane, 64 at once (`consensus-testbed load`). Programs for ARM run under qemu-user; the emulator's own
# memory is not counted. Instructions have a script and a baseline of their own, which it runs: scripts/instructions.sh.
#
#   --no-instructions   leaves them out
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

instructions=true
case "$#-${1-}" in
    0-) ;;
    1---no-instructions) instructions=false ;;
    *) echo 'usage: scripts/budget.sh [--no-instructions]' >&2; exit 2 ;;
esac

host=$(uname -m)
cargo build --release -p consensus-testbed
testbed=${CARGO_TARGET_DIR:-target}/release/consensus-testbed

figure() { # figure JSON NAME: the largest of that name
    grep -o "\"$2\":[0-9]*" <<<"$1" | cut -d: -f2 | sort -n | tail -n 1
}

over=false
row() { # row PROGRAM WHAT MEASURED BUDGET UNIT
    local measured=${3:-0} word=
    # Nothing measured is not little.
    if [ "$measured" -eq 0 ] || [ "$measured" -gt "$4" ]; then
        word=OVER over=true
    fi
    printf '%-18s %-8s %9s %9s %-5s %3s %% %s\n' "$1" "$2" "$measured" "$4" "$5" "$((measured * 100 / $4))" "$word"
}

measure() { # measure TARGET SHELL SIZE IDLE LOADED: the budgets of a program
    local target=$1 shell=$2 what="$1 $2" name program node said
    name=consensus-node
    [ "$shell" = smol ] || name=consensus-node-blocking
    case $target in
        "$host")
            cargo build --release --locked -p "shell-$shell" --bin "$name"
            program=${CARGO_TARGET_DIR:-target}/release/$name node=$program
            ;;
        armv7 | aarch64)
            said=$(scripts/cross.sh "$target" --shell "$shell")
            echo "$said"
            program=${said%%:*} node=$program.qemu
            ;;
        *)
            echo "$what: not measured, for this machine is $host"
            return
            ;;
    esac
    row "$what" size "$(stat -Lc %s "$program")" "$3" bytes >>"$table"
    said=$("$testbed" footprint --shell "$shell" --node "$node" --json)
    row "$what" idle "$(figure "$said" idle_rss_kib)" "$4" KiB >>"$table"
    said=$("$testbed" load --shell "$shell" --node "$node" --only data-plane --kib 16 --at-once 64 --seconds 2 --json)
    row "$what" loaded "$(figure "$said" peak_rss_kib)" "$5" KiB >>"$table"
}

table=$(mktemp)
trap 'rm -f "$table"' EXIT
printf '%-18s %-8s %9s %9s\n' program what measured budget >"$table"
budgets=$(python3 -c '
import tomllib
for target, shells in tomllib.load(open("scripts/budget.toml", "rb")).items():
    for shell, most in shells.items():
        print(target, shell, most["size"], most["idle"], most["loaded"])
')
while read -r target shell size idle loaded; do
    measure "$target" "$shell" "$size" "$idle" "$loaded" </dev/null
done <<<"$budgets"
cat "$table"

if $instructions; then
    scripts/instructions.sh
fi
if $over; then
    echo 'over budget: take less, or say in scripts/budget.toml why more is right' >&2
    exit 1
fi
