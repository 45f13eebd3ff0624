#!/usr/bin/env bash
# Makes seeds of what really came over a wire, and keeps of each corpus what it needs: scripts/seeds.sh [FOLDER…]
#
# Records a demo of both programs, takes seeds from the traces, and adds those of them that reach something new to
# fuzz/corpus. A FOLDER is one that a fuzzer grew, with a folder for each target: what is in it is added in the same way.
# Inputs with a name stay; of the others each corpus keeps few that cover all its edges, as many as fit, the smallest first.
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

# Bytes that a corpus may have, and an input.
most=49152
longest=4096

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for shell in blocking smol; do
    cargo run --release -p consensus-testbed -- demo --shell "$shell" --trace "$work/$shell"
    for trace in "$work/$shell"/*.trace; do
        cargo run --release -p consensus-testbed -- corpus "$trace" "$work/traces"
    done
done

cargo +nightly fuzz build --sanitizer none
built=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release

for corpus in fuzz/corpus/*; do
    name=${corpus##*/}
    mkdir "$work/new" "$work/named"
    # Names that libFuzzer gave are hashes.
    find "$corpus" -type f -regextype posix-extended -not -regex '.*/[0-9a-f]{40}' -exec cp {} "$work/named" \;
    from=()
    for folder in "$work/traces" "$@"; do
        [ -d "$folder/$name" ] && from+=("$folder/$name")
    done
    cp -r "$work/named/." "$work/new"
    "$built/$name" -set_cover_merge=1 -use_counters=0 -max_len="$longest" "$work/new" "$corpus" "${from[@]}" >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    size=$(cat "$work/named"/* 2>/dev/null | wc -c)
    rm -rf "$corpus" && cp -r "$work/named" "$corpus"
    while read -r bytes path; do
        size=$((size + bytes))
        [ "$size" -le "$most" ] || break
        cp "$path" "$corpus"
    done < <(find "$work/new" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -printf '%s %p\n' | sort -n)
    printf '%-16s %5s inputs, %6s bytes\n' "$name" "$(find "$corpus" -type f | wc -l)" "$(cat "$corpus"/* | wc -c)"
    rm -rf "$work/new" "$work/named"
done
