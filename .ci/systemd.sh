#!/usr/bin/env bash
# Nodes under a real systemd, that of a user, made services, updated by the network, and taken away again:
# .ci/systemd.sh [SHELL…]. It needs a machine that was started by systemd, or one that looks like it: this one does, in
# a namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo 'a namespace that looks as if systemd ran needs root' >&2; exit 1; }
shells=("$@")
[ ${#shells[@]} -gt 0 ] || shells=(blocking smol)
for shell in "${shells[@]}"; do
    # shellcheck disable=SC2016 # the inner shell's
    unshare --mount --pid --fork --mount-proc \
        sh -c 'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$@"' sh \
        cargo run -p consensus-testbed -- supervise --shell "$shell"
done
