#!/usr/bin/env bash
# Nodes under a real PM2, made services, updated by the network, and taken away again: .ci/pm2.sh [SHELL…]. PM2 goes
# into a folder of its own, target/pm2, in the version that scripts/ensure-pm2.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sed -n 's/^PM2=//p' scripts/ensure-pm2.sh)
folder=$PWD/target/pm2
# What operators run, as far as it leaves this machine as it is.
sh scripts/ensure-pm2.sh --dry-run
if ! [ -x "$folder/node_modules/.bin/pm2" ]; then
    mkdir -p "$folder"
    npm install --no-fund --no-audit --silent --prefix "$folder" "$wanted"
fi
shells=("$@")
[ ${#shells[@]} -gt 0 ] || shells=(blocking smol)
for shell in "${shells[@]}"; do
    cargo run -p consensus-testbed -- pm2 --pm2 "$folder/node_modules/.bin/pm2" --shell "$shell"
done
