#!/usr/bin/env bash
# Nodes under a real systemd, that of a user, made services, updated by the network, and taken away again, and then in
# the unit of the whole machine: .ci/systemd.sh [SHELL…]. It needs a machine that was started by systemd, or one that
# looks like it: this one does, in a namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo 'a namespace that looks as if systemd ran needs root' >&2; exit 1; }
# Where a unit with folders for temporary files of its own sees them, and another user too.
folder=$(mktemp -d /opt/consensus-testbed.XXXXXX)
trap 'rm -rf "$folder"' EXIT
chmod 0755 "$folder"
shells=("$@")
[ ${#shells[@]} -gt 0 ] || shells=(blocking smol)
for shell in "${shells[@]}"; do
    # What the first process of such a machine makes: what hidden folders are covered with.
    # shellcheck disable=SC2016 # the inner shell's
    TMPDIR=$folder unshare --mount --pid --fork --mount-proc sh -euc '
        mount -t tmpfs tmpfs /run
        mkdir -p /run/systemd/system /run/systemd/inaccessible/dir
        touch /run/systemd/inaccessible/reg
        mkfifo /run/systemd/inaccessible/fifo
        chmod 0 /run/systemd/inaccessible/*
        exec "$@"' sh cargo run -p consensus-testbed -- supervise --shell "$shell"
done
