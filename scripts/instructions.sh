#!/usr/bin/env bash
# Counts the instructions of the node's hot paths, without cryptography, and compares them with the baseline in
# scripts/instructions.toml: more than 3 % more fails. With --bless the baseline becomes what was counted.
#
#   scripts/instructions.sh [--bless]
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

baseline=scripts/instructions.toml
times=100 most=110

bless=false
case "${1-}" in
    '') ;;
    --bless) bless=true ;;
    *) echo "usage: scripts/instructions.sh [--bless]" >&2; exit 2 ;;
esac
command -v valgrind >/dev/null || { echo 'valgrind is missing: install the package of that name' >&2; exit 1; }

# One that is built for this very machine would count what no other machine does.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
rustc=$(rustc --version | cut -d' ' -f2)
built_for=$(rustc -vV | sed -n 's/^host: //p')
program=$(cargo bench -p shell-blocking --bench instructions --no-run --message-format json |
    sed -n 's/.*"name":"instructions".*"executable":"\([^"]*\)".*/\1/p')
# Asked for here, where a program that is not there ends the script: nothing counted is not nothing grown.
paths=$("$program" list)

counted() { # counted PATH TIMES
    local said
    said=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" "$most" 2>&1) ||
        { echo "$said" >&2; return 1; }
    sed -n 's/^==[0-9]*== Collected : //p' <<<"$said"
}

of_baseline() { # of_baseline KEY
    [ -e "$baseline" ] || return 0
    sed -n "s/^\"\{0,1\}$1\"\{0,1\} = \"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" "$baseline"
}

new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    echo '# Instructions that each hot path takes, once, without cryptography. Made by scripts/instructions.sh --bless.'
    echo "rustc = \"$rustc\""
    echo "target = \"$built_for\""
    echo
    echo '[instructions]'
} >"$new"

grown=false fallen=false
printf '%-44s %12s %12s %8s\n' path instructions baseline change
while read -r path; do
    few=$(counted "$path" "$((times / 10))")
    many=$(counted "$path" "$times")
    count=$(((many - few) / (times - times / 10)))
    printf '"%s" = %s\n' "$path" "$count" >>"$new"
    before=$(of_baseline "$path")
    if [ -z "$before" ]; then
        printf '%-44s %12s %12s %8s\n' "$path" "$count" - new
        $bless || grown=true
        continue
    fi
    # In tenths of a per cent.
    change=$(((count - before) * 1000 / before))
    printf '%-44s %12s %12s %7s%%\n' "$path" "$count" "$before" \
        "$(awk -v c="$change" 'BEGIN { printf "%+.1f", c / 10 }')"
    [ "$change" -le 30 ] || grown=true
    [ "$change" -ge -30 ] || fallen=true
done <<<"$paths"

if $bless; then
    cp "$new" "$baseline"
    echo "$baseline is what was counted"
    exit
fi
for known in rustc:"$rustc" target:"$built_for"; do
    before=$(of_baseline "${known%%:*}")
    [ "$before" = "${known#*:}" ] ||
        echo "the baseline was made with ${known%%:*} $before and this is ${known#*:}: that may be the whole change" >&2
done
if $grown; then
    echo 'a path takes over 3 % more instructions than its baseline, or has none: mend it, or say why and bless it (--bless)' >&2
    exit 1
fi
if $fallen; then
    echo 'a path takes over 3 % fewer: bless it (--bless), so that it stays so'
fi
