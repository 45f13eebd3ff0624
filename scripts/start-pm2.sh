#!/bin/sh
# Has PM2 keep the node, or start it anew with these settings where PM2 has it already: start-pm2.sh [ARGUMENT…]. The
# arguments are the node's; without any, `run`. What the node is to know of its network comes from the environment, or
# from node.env in the install directory; ecosystem.config.cjs says which variables count.
#
#   CONSENSUS_NODE_INSTALL_DIR  the install directory; default: the one that this script is in, else
#                               ~/.consensus/node-runtime
#   CONSENSUS_PM2_NAME          what PM2 calls the node; default consensus-node
#
# POSIX sh.
set -eu
unset CDPATH

say() {
    printf 'start-pm2: %s\n' "$*" >&2
}

# is_running FILE: whether the process in it is.
is_running() {
    [ -r "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null
}

main() {
    here=$(cd "$(dirname "$0")" && pwd -P)
    dir=${CONSENSUS_NODE_INSTALL_DIR:-}
    if [ -z "$dir" ]; then
        if [ -d "$here/../../../releases" ]; then
            dir=$(cd "$here/../../.." && pwd -P)
        else
            dir=${HOME:-}/.consensus/node-runtime
        fi
    fi
    name=${CONSENSUS_PM2_NAME:-consensus-node}
    case $name in
    '' | -* | *[!A-Za-z0-9._-]*)
        say "CONSENSUS_PM2_NAME may have letters, digits and . _ -, and does not begin with a stroke"
        exit 2
        ;;
    esac
    if ! command -v pm2 >/dev/null; then
        say "there is no pm2: run $here/ensure-pm2.sh"
        exit 3
    fi
    if [ ! -f "$dir/run-node.sh" ] || [ ! -e "$dir/current" ]; then
        say "$dir has no release in it: install one"
        exit 3
    fi
    CONSENSUS_NODE_INSTALL_DIR=$dir
    CONSENSUS_PM2_NAME=$name
    # One a line: a list of its own for the file that cannot see this script's.
    PM2_NODE_ARGUMENTS=$(printf '%s\n' "$@")
    export CONSENSUS_NODE_INSTALL_DIR CONSENSUS_PM2_NAME PM2_NODE_ARGUMENTS
    # PM2 saves what it runs. What it saved before and does not run would be gone.
    saves=1
    pm2_home=${PM2_HOME:-${HOME:-}/.pm2}
    if [ -s "$pm2_home/dump.pm2" ] && ! is_running "$pm2_home/pm2.pid"; then saves=0; fi
    say "starting $name from $dir"
    pm2 startOrRestart "$here/ecosystem.config.cjs" --update-env
    if [ "$saves" -eq 1 ]; then
        pm2 save
    else
        say "PM2 did not run, and its saved list was left as it is: see to it that \`pm2 list\` has all, then \`pm2 save\`"
    fi
    say "PM2 itself starts with the machine once you have run what \`pm2 startup\` tells you"
}

main "$@"
