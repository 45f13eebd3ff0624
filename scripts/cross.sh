#!/usr/bin/env bash
# Builds the node for an ARM board on another machine: scripts/cross.sh armv7|aarch64 [--shell blocking|smol]
#
# Where the stripped program is, it says at its end. The one for armv7 is of the profile `small` and in Thumb code. --shell
# smol is for aarch64 alone. It is linked with the board's own glibc, for a static glibc cannot look names up by the board's
# settings; the oldest that will do is said. Beside it is a script of the same name and .qemu, which runs it here.
#
# It installs nothing, and says what is missing. The compiler is the one of RUSTC or PATH where that has the target's
# standard library, else Debian's in target/msrv (.ci/rust-1.85.sh).
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

usage() {
    echo 'usage: scripts/cross.sh armv7|aarch64 [--shell blocking|smol]' >&2
    exit 2
}

board=${1-} shell=blocking
case "$#-${2-}" in
    1-) ;;
    3---shell) shell=$3 ;;
    *) usage ;;
esac
case $board in
    armv7) target=armv7-unknown-linux-gnueabihf gnu=arm-linux-gnueabihf debian=armhf emulator=qemu-arm
        profile=small flags='-C target-feature=+thumb-mode' ;;
    aarch64) target=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu debian=arm64 emulator=qemu-aarch64
        profile=release flags= ;;
    *) usage ;;
esac
case $board-$shell in
    *-blocking) package=shell-blocking name=consensus-node-blocking ;;
    aarch64-smol) package=shell-smol name=consensus-node ;;
    armv7-smol) echo 'the smol shell is for servers: armv7 has the blocking one' >&2; exit 2 ;;
    *) usage ;;
esac

has_target() { # has_target RUSTC
    compgen -G "$("$1" --print target-libdir --target "$target" 2>/dev/null)/libstd-*.rlib" >/dev/null
}

missing=()
command -v "$gnu-gcc" >/dev/null ||
    missing+=("$gnu-gcc: Debian's packages gcc-$gnu and libc6-dev-$debian-cross")
rustc=${RUSTC:-rustc}
if ! has_target "$rustc"; then
    rustc=$PWD/target/msrv/rustc
    has_target "$rustc" ||
        missing+=("a compiler for $target: rustup target add $target, or on Debian .ci/rust-1.85.sh $debian")
fi
if [ ${#missing[@]} -gt 0 ]; then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 1
fi

upper=${target^^}
# Flags for this machine are not for that one.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
export RUSTC=$rustc CARGO_TARGET_DIR=$PWD/target/cross "CARGO_TARGET_${upper//-/_}_LINKER=$gnu-gcc"
export "CARGO_TARGET_${upper//-/_}_RUSTFLAGS=$flags"
cargo build --profile "$profile" --locked --target "$target" -p "$package" --bin "$name"

program=target/cross/$target/$profile/$name
cat >"$program.qemu" <<SCRIPT
#!/bin/sh
# With its memory at an address of its own, so that it can be told from the emulator's.
exec $emulator -B 0x10000000000 -L /usr/$gnu "$PWD/$program" "\$@"
SCRIPT
chmod +x "$program.qemu"
glibc=$("$gnu-objdump" -T "$program" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
printf '%s: %s bytes, for glibc %s or newer, by %s\n' "$program" "$(stat -c %s "$program")" "$glibc" "$("$rustc" -V)"
