#!/usr/bin/env bash
# Line coverage of core from its tests and the fuzz corpora, its tests' own lines not counted: scripts/coverage.sh [PERCENT]
#
# Prints it by file, the least covered first, and in all; fails below PERCENT (90). Needs the toolchain's own llvm-tools
# (`rustup component add llvm-tools`). With --lines FILE it prints the lines of that file that nothing ran.
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

lines=
if [ "${1-}" = --lines ]; then
    lines=${2:?--lines takes a file}
    shift 2
    [ -f "$lines" ] || { echo "$lines: there is no such file; give its path from the top, as core/src/api.rs" >&2; exit 2; }
fi
percent=${1:-90}

tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
[ -x "$tools/llvm-cov" ] || { echo 'llvm-cov is missing: rustup component add llvm-tools' >&2; exit 1; }

profiles=$PWD/target/coverage/profiles
rm -rf "$profiles"
export RUSTFLAGS='-C instrument-coverage' CARGO_TARGET_DIR=$PWD/target/coverage CARGO_INCREMENTAL=0
export LLVM_PROFILE_FILE=$profiles/%p-%m.profraw
# Unit tests, among them the corpora, and whole machines in virtual time. The model of the installer is left out: what it
# runs, a corpus runs as well, in a hundredth of the time.
run=(cargo test -p consensus-core --features fuzzing --lib --test virtual_time --test words)
"${run[@]}" -- --quiet
objects=()
while read -r program; do
    objects+=(--object "$program")
done < <("${run[@]}" --no-run --message-format json 2>/dev/null | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')

"$tools/llvm-profdata" merge --sparse "$profiles"/*.profraw -o "$profiles/all.profdata"
"$tools/llvm-cov" export --format lcov --instr-profile "$profiles/all.profdata" "${objects[@]}" >"$profiles/all.lcov"
python3 scripts/coverage.py "$profiles/all.lcov" "$percent" "$lines"
