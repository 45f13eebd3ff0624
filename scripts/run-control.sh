#!/bin/sh
# Keeps the control process alone running, for those who keep the local API apart: run-control.sh [ARGUMENT…]. The
# arguments are those of `control`. It runs it by run-node.sh, so that updates and going back work as there.
#
# An exit code of 75 means "start me again", and is obeyed at once, but for a second's rest where the process had lived
# for less than five. Any other exit code is this script's own: what to do then is the supervisor's business.
#
#   CONSENSUS_NODE_INSTALL_DIR  the install directory; default: the one that this script is in, else
#                               ~/.consensus/node-runtime
#
# POSIX sh.
set -eu
unset CDPATH

# pass_on, on_interrupt: as in run-node.sh; a terminal and PM2 interrupt the whole family themselves.
# shellcheck disable=SC2317,SC2329 # the traps call these two
pass_on() {
    stopping=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :
}

# shellcheck disable=SC2317,SC2329
on_interrupt() {
    if [ "$stopping" -eq 1 ]; then pass_on; else stopping=1; fi
}

# reap: as in run-node.sh.
reap() {
    while :; do
        code=0
        wait "$child" || code=$?
        [ "$code" -gt 128 ] || break
        if ! kill -0 "$child" 2>/dev/null; then
            last=0
            wait "$child" 2>/dev/null || last=$?
            [ "$last" -eq 127 ] || code=$last
            break
        fi
    done
    child=
}

main() {
    here=$(cd "$(dirname "$0")" && pwd -P)
    dir=${CONSENSUS_NODE_INSTALL_DIR:-}
    if [ -z "$dir" ]; then
        # Of a release this is releases/ID/scripts/run-control.sh.
        if [ -d "$here/../../../releases" ]; then
            dir=$(cd "$here/../../.." && pwd -P)
        else
            dir=${HOME:-}/.consensus/node-runtime
        fi
    fi
    CONSENSUS_NODE_INSTALL_DIR=$dir
    export CONSENSUS_NODE_INSTALL_DIR
    # The one in place outlives the release that this script is of.
    wrapper=$dir/run-node.sh
    [ -f "$wrapper" ] || wrapper=$here/run-node.sh

    stopping=0
    child=
    trap pass_on TERM HUP QUIT
    trap on_interrupt INT
    while :; do
        begun=$(date +%s)
        sh "$wrapper" control "$@" &
        child=$!
        [ "$stopping" -eq 0 ] || kill -TERM "$child" 2>/dev/null || :
        reap
        if [ "$code" -ne 75 ] || [ "$stopping" -eq 1 ]; then
            exit "$code"
        fi
        printf 'run-control: the node asks to be started again\n' >&2
        if [ $(($(date +%s) - begun)) -lt 5 ]; then
            sleep 1 &
            wait $! || :
        fi
        [ "$stopping" -eq 0 ] || exit 0
    done
}

main "$@"
