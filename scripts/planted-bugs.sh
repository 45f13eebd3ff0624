#!/usr/bin/env bash
# Whether the fuzz targets find what they are for: scripts/planted-bugs.sh [PATCH…]
#
# Plants each bug of fuzz/planted in a copy of the tree, runs the target that must find it from the committed corpus, and
# says how many seconds it took. A patch that does not apply, or a bug that is not found within a minute, fails.
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

most=60
patches=("$@")
[ ${#patches[@]} -gt 0 ] || patches=(fuzz/planted/*.patch)

root=$PWD
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
missed=0

for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    target=$(sed -n 's/^Target: //p' "$patch")
    rm -rf "$work/tree"
    mkdir "$work/tree"
    git ls-files -z | tar -c --null -T - | tar -x -C "$work/tree"
    (cd "$work/tree" && git apply "$root/$patch")
    # A folder of its own for what is built: what scripts/fuzz.sh builds has no planted bug.
    if ! (cd "$work/tree" && cargo +nightly fuzz build --sanitizer none --target-dir "$root/target/planted" "$target") \
        >"$work/log" 2>&1; then
        tail -n 30 "$work/log" >&2
        exit 1
    fi
    start=$(date +%s%N)
    if "target/planted/$host/release/$target" "$work/tree/fuzz/corpus/$target" -artifact_prefix="$work/" \
        -max_total_time="$most" -timeout=10 >"$work/log" 2>&1; then
        printf '%-24s %-10s not found within %s s\n' "$name" "$target" "$most"
        missed=1
    elif grep -q 'panicked at' "$work/log"; then
        took=$((($(date +%s%N) - start) / 10000000))
        said=$(grep -A1 -m1 'panicked at' "$work/log" | tail -n 1)
        printf '%-24s %-10s found after %d.%02d s: %s\n' "$name" "$target" $((took / 100)) $((took % 100)) "$said"
    else
        tail -n 30 "$work/log" >&2
        exit 1
    fi
done
exit "$missed"
