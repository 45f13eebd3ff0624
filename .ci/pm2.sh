#!/usr/bin/env bash
# Nodes under a real PM2, made services, updated by the network, and taken away again: .ci/pm2.sh [SHELL…]. PM2 comes
# by the script that operators run, into a folder of its own, unless the machine has one.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/target/pm2
mkdir -p "$folder/lib"
export PATH=$folder/bin:$PATH
NPM_CONFIG_PREFIX=$folder sh scripts/ensure-pm2.sh --yes
pm2=$(command -v pm2)
shells=("$@")
[ ${#shells[@]} -gt 0 ] || shells=(blocking smol)
for shell in "${shells[@]}"; do
    cargo run -p consensus-testbed -- supervise --pm2 "$pm2" --shell "$shell"
done
