#!/bin/sh
# Starts the current release of an install directory, and goes back to the last good one where a new one does not
# prove itself: run-node.sh [ARGUMENT…]. The arguments are the node's; without any, `run`.
#
# A release is on probation while `current` and `last-good` lead to different releases; the node ends that itself once
# it has reconnected, by moving `last-good`. Until then this script watches it, and ends it and starts the last good
# one where it has not reconnected in time, or was started three times. It needs nothing of the release that it
# watches. Once a release has proved itself, its end is the end of this script, with the same exit code, unless another
# release was installed: then that is started.
#
#   CONSENSUS_NODE_INSTALL_DIR  the install directory; default: the folder of this script where it is one,
#                               else ~/.consensus/node-runtime
#   CONSENSUS_NODE_PROBATION    seconds to reconnect; default: what was said at the installation, else 120
#   CONSENSUS_NODE_STARTS       starts to reconnect in; default 3
#   CONSENSUS_NODE_STOP_SECONDS how long a release that is ended may take for it; default 20
#   CONSENSUS_NODE_ENV_FILE     a file with NAME="value" lines, read first: settings that the supervisor need not keep
#   CONSENSUS_NODE_EXIT_ON_UPDATE  not empty: ends where another release was installed, with the node's exit code, and
#                               leaves it to the supervisor to start that; it sees the update then, as a restart
#
# Run it under a supervisor that restarts it. One runs an install directory at a time: a second one ends with exit
# code 73, and a node that outlived its own is ended before another is started. Every file is written beside its place
# and moved into it: whenever the power fails, there is one release that starts. POSIX sh; beyond that `readlink` alone.
set -u
# A folder that is entered is the one that is named.
unset CDPATH

# How a node ends whose state directory another process has, and this script where another one runs the directory.
occupied=73

say() {
    printf 'run-node: %s\n' "$*" >&2
}

# sync_path PATH: makes it durable; where sync knows no paths, everything.
sync_path() {
    sync "$1" 2>/dev/null || sync
}

# put NAME: standard input becomes the file NAME of the install directory, as a whole or not at all.
put() {
    # One that is there may be a link to another, or a pipe.
    mkdir -p "$dir/next" &&
        rm -f "$dir/next/$1" &&
        cat >"$dir/next/$1" &&
        sync_path "$dir/next/$1" &&
        mv -f "$dir/next/$1" "$dir/" &&
        sync_path "$dir"
}

# point_current ID: `current` leads to the release. Moved into a folder, a link takes its name there in one step; moved
# to its name, it would end up inside the release that the old link leads to.
point_current() {
    mkdir -p "$dir/next" &&
        rm -f "$dir/next/current" &&
        ln -s "releases/$1" "$dir/next/current" &&
        sync_path "$dir/next" &&
        mv -f "$dir/next/current" "$dir/" &&
        sync_path "$dir"
}

# find_release LINK: sets `found` to the release that a link leads to, empty where it leads to none.
find_release() {
    found=
    target=$(readlink "$dir/$1" 2>/dev/null) || return 0
    target=${target#"$dir/"}
    case $target in
    releases/*/* | releases/.* | *.partial) ;;
    releases/?*) found=${target#releases/} ;;
    esac
}

# is_startable ID
is_startable() {
    [ -n "$1" ] && [ -f "$dir/releases/$1/bin/consensus-node" ] && [ -x "$dir/releases/$1/bin/consensus-node" ]
}

# header FILE: the machine that a program is for, as its header says; empty for what is not ELF, a script for example.
header() {
    # shellcheck disable=SC2046 # the bytes are to be words
    set -- $(dd if="$1" bs=20 count=1 2>/dev/null | od -An -tx1)
    [ "${1:-} ${2:-} ${3:-} ${4:-}" = "7f 45 4c 46" ] || return 0
    [ $# -eq 20 ] || { echo truncated && return 0; }
    shift 4
    echo "$1 $2 ${15} ${16}"
}

# is_foreign ID GOOD: whether the program is for another machine than this. A shell would take one for a script.
is_foreign() {
    mine=$(header "$dir/releases/$1/bin/consensus-node")
    [ -n "$mine" ] || return 1
    theirs=$(header "$dir/releases/$2/bin/consensus-node")
    [ -n "$theirs" ] || theirs=$(header /bin/sh)
    [ -n "$theirs" ] && [ "$mine" != "$theirs" ]
}

# give_up ID REASON [silent]: the release is not tried again, and the last good one is current. Written down first: a
# power cut between the two is made good at the next start. `silent`: it ran all its time; where the last good one does
# not come through at once either, that is not held against it.
give_up() {
    say "release ${1:-(none)} is given up: $2; going back to $good"
    given_up=$1
    # What is not there, or never was, did not fail.
    if [ -n "$1" ] && [ -d "$dir/releases/$1" ]; then
        {
            printf 'release=%s\nreason=%s\n' "$1" "$2"
            [ -z "${3:-}" ] || printf 'silent=yes\n'
            cat "$dir/releases/$1/install-record" 2>/dev/null
        } | put rolled-back || say "the rollback could not be written down in $dir"
    fi
    go_back
}

go_back() {
    point_current "$good" || say "$dir/current could not be changed; starting $good all the same"
    release=$good
    on_probation=0
}

# is_whole_number TEXT
is_whole_number() {
    case $1 in
    # With a zero before it, a number would be read in another base, or not at all.
    '' | *[!0-9]* | ???????* | 0?*) return 1 ;;
    esac
}

# read_record ID: sets `probation` to what the release's record says, unless the environment does.
read_record() {
    probation=${CONSENSUS_NODE_PROBATION:-}
    if [ -z "$probation" ] && [ -r "$dir/releases/$1/install-record" ]; then
        probation=$(sed -n 's/^probation=//p' "$dir/releases/$1/install-record")
    fi
    { is_whole_number "$probation" && [ "$probation" -gt 0 ]; } || probation=120
}

# choose: sets `release` to what is to be started, and `on_probation`; fails where there is nothing.
choose() {
    find_release last-good
    good=$found
    find_release current
    release=$found
    on_probation=0
    is_startable "$good" || good=
    if ! is_startable "$release"; then
        if [ -z "$good" ]; then
            say "$dir has no release that can be started: install one"
            return 1
        fi
        give_up "$release" 'its program is missing or not executable'
        return 0
    fi
    if [ -z "$good" ] || [ "$release" = "$good" ]; then
        return 0
    fi
    line=
    if [ -f "$dir/rolled-back" ]; then
        IFS= read -r line <"$dir/rolled-back"
    fi
    if [ "$line" = "release=$release" ] || [ "$given_up" = "$release" ]; then
        say "release $release was given up before; going back to $good"
        go_back
        return 0
    fi
    counted=
    count=
    if [ -f "$dir/starts" ]; then
        read -r counted count <"$dir/starts"
    fi
    { [ "$counted" = "$release" ] && is_whole_number "$count"; } || count=0
    # Where it cannot be written down, counting goes on in this process.
    if [ "$release" = "$last_release" ] && [ "$last_count" -gt "$count" ]; then
        count=$last_count
    fi
    if [ "$count" -ge "$starts" ]; then
        give_up "$release" "it was started $count times and did not reconnect$last_exit"
        return 0
    fi
    if is_foreign "$release" "$good"; then
        give_up "$release" 'its program is not for this machine'
        return 0
    fi
    last_release=$release
    last_count=$((count + 1))
    printf '%s %s\n' "$release" "$last_count" | put starts || say "the start could not be counted in $dir"
    on_probation=1
    read_record "$release"
    say "release $release is on probation: start $last_count of $starts, $probation s to reconnect"
}

# pass_on: a stop that was asked for reaches the node. A second one ends the node at once, and so it should.
# shellcheck disable=SC2317 # the traps call these two
pass_on() {
    stopping=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}

# on_interrupt: a terminal and PM2 interrupt the node as well; passed on, that would be the second.
# shellcheck disable=SC2317
on_interrupt() {
    if [ "$stopping" -eq 1 ]; then pass_on; else stopping=1; fi
}

# nap: one second, or less where a signal comes.
nap() {
    sleep 1 &
    wait $!
}

# is_of_here PID: whether the process runs a program of this install directory.
is_of_here() {
    kill -0 "$1" 2>/dev/null || return 1
    if [ -r "/proc/$1/cmdline" ]; then
        line=$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null)
    else
        line=$(ps -ww -o args= -p "$1" 2>/dev/null)
    fi
    case $line in
    *"$dir/releases/"*) ;;
    *) return 1 ;;
    esac
}

# parent_of PID
parent_of() {
    if [ -r "/proc/$1/status" ]; then
        sed -n 's/^PPid:[^0-9]*//p' "/proc/$1/status" 2>/dev/null
    else
        ps -o ppid= -p "$1" 2>/dev/null | tr -d ' '
    fi
}

# take_over: ends the node of a run-node.sh that is gone; fails where it is not gone. A node that nobody watches would
# keep the next one from its state directory, for ever where it hangs.
take_over() {
    left=
    keeper=
    if [ -f "$dir/process" ]; then
        read -r left keeper <"$dir/process"
    fi
    case $left in
    '' | *[!0-9]*) return 0 ;;
    esac
    is_of_here "$left" || return 0
    if [ "$(parent_of "$left")" = "$keeper" ]; then
        say "process $keeper already runs $dir: one supervisor is enough"
        return 1
    fi
    say "the node of a run-node.sh that is gone still runs, process $left: ending it"
    kill -TERM "$left" 2>/dev/null
    ticks=0
    while is_of_here "$left" && [ "$stopping" -eq 0 ]; do
        [ "$ticks" -lt "$stop_seconds" ] || kill -KILL "$left" 2>/dev/null
        nap
        ticks=$((ticks + 1))
    done
}

# has_ended: whether the child has. The shell takes note of that while it waits for a nap.
has_ended() {
    ! kill -0 "$child" 2>/dev/null
}

# reap: waits for the child, whatever signals come in between; its exit code is in `code`.
reap() {
    while :; do
        wait "$child"
        code=$?
        # More than 128 is a signal: the child's or this script's.
        [ "$code" -gt 128 ] || break
        if has_ended; then
            # Where one of this script's came together with the child's end, the shell still has the child's code.
            wait "$child" 2>/dev/null
            last=$?
            [ "$last" -eq 127 ] || code=$last
            break
        fi
    done
    child=
}

# end_child: asks it to end, and makes it end where it does not.
end_child() {
    kill -TERM "$child" 2>/dev/null
    ticks=0
    while [ "$ticks" -lt "$stop_seconds" ]; do
        has_ended && return 0
        nap
        ticks=$((ticks + 1))
    done
    kill -KILL "$child" 2>/dev/null
}

# watch: returns when the child has proved itself or ended, or is to stop; ends it when its time is over.
watch() {
    ticks=0
    late=0
    while [ "$stopping" -eq 0 ]; do
        find_release last-good
        [ "$found" = "$release" ] && return 0
        has_ended && return 0
        if [ "$ticks" -ge "$probation" ]; then
            late=1
            end_child
            return 0
        fi
        nap
        ticks=$((ticks + 1))
    done
}

# run_child ARGUMENT…: starts the chosen release and returns when it has ended; its exit code is in `code`.
run_child() {
    late=0
    "$dir/releases/$release/bin/consensus-node" "$@" &
    child=$!
    # For the next one, where this one is gone by then.
    rm -f "$dir/process" 2>/dev/null
    printf '%s %s\n' "$child" "$$" 2>/dev/null >"$dir/process"
    # A signal may have come before there was anyone to pass it on to.
    [ "$stopping" -eq 0 ] || kill -TERM "$child" 2>/dev/null
    [ "$on_probation" -eq 0 ] || watch
    reap
}

main() {
    if [ -n "${CONSENSUS_NODE_ENV_FILE:-}" ]; then
        # A path without a slash would be looked for in PATH, and one that is missing would end this shell.
        case $CONSENSUS_NODE_ENV_FILE in
        /*) ;;
        *) CONSENSUS_NODE_ENV_FILE=./$CONSENSUS_NODE_ENV_FILE ;;
        esac
        if [ -r "$CONSENSUS_NODE_ENV_FILE" ]; then
            set -a
            # shellcheck source=/dev/null
            . "$CONSENSUS_NODE_ENV_FILE"
            set +a
        else
            say "$CONSENSUS_NODE_ENV_FILE cannot be read: starting without its settings"
        fi
    fi
    here=$(cd "$(dirname "$0")" && pwd -P) || exit 70
    dir=${CONSENSUS_NODE_INSTALL_DIR:-}
    if [ -z "$dir" ]; then
        if [ -d "$here/releases" ]; then dir=$here; else dir=${HOME:-}/.consensus/node-runtime; fi
    fi
    # By its one name: a process of here is known by it.
    named=$(cd "$dir" 2>/dev/null && pwd -P) && dir=$named
    CONSENSUS_NODE_INSTALL_DIR=$dir
    export CONSENSUS_NODE_INSTALL_DIR
    starts=${CONSENSUS_NODE_STARTS:-3}
    is_whole_number "$starts" && [ "$starts" -gt 0 ] || starts=3
    stop_seconds=${CONSENSUS_NODE_STOP_SECONDS:-20}
    is_whole_number "$stop_seconds" || stop_seconds=20
    [ $# -gt 0 ] || set -- run

    stopping=0
    child=
    last_release=
    last_count=0
    last_exit=
    given_up=
    trap pass_on TERM HUP QUIT
    trap on_interrupt INT
    take_over || exit "$occupied"
    [ "$stopping" -eq 0 ] || exit 0
    while choose; do
        [ "$stopping" -eq 0 ] || exit 0
        # For the installer: a release that runs is not removed.
        printf '%s\n' "$release" | put running || say "what runs could not be written down in $dir"
        waited=0
        while :; do
            run_child "$@"
            [ "$stopping" -eq 0 ] || exit "$code"
            # Not its fault, and so not a start more. As long as its time lasts: a release may say so of itself.
            if [ "$on_probation" -eq 0 ] || [ "$code" -ne "$occupied" ] || [ "$waited" -ge "$probation" ]; then
                break
            fi
            find_release current
            [ "$found" = "$release" ] || break
            [ "$waited" -gt 0 ] || say "release $release waits until it can have its state directory"
            waited=$((waited + 1))
            nap
            [ "$stopping" -eq 0 ] || exit "$code"
        done
        started=$release
        find_release current
        installed=$found
        find_release last-good
        proved=$found
        if [ "$installed" != "$started" ]; then
            # Not another one where this was the last good one in place of one whose link could not be changed.
            [ -n "$installed" ] && [ "$installed" != "$given_up" ] || exit "$code"
            say "release $started ended with exit code $code; another one is installed"
            [ -z "${CONSENSUS_NODE_EXIT_ON_UPDATE:-}" ] || exit "$code"
            continue
        fi
        if [ "$on_probation" -eq 0 ] || [ "$proved" = "$started" ]; then
            # Unless it proved itself in the instant in which its time was over: then it is started again.
            [ "$late" -eq 1 ] || exit "$code"
        elif [ "$late" -eq 1 ]; then
            give_up "$started" "it did not reconnect within $probation s" silent
        else
            last_exit=" (last exit code $code)"
            say "release $started ended with exit code $code before it had reconnected"
            nap
            [ "$stopping" -eq 0 ] || exit "$code"
        fi
    done
    exit 70
}

# All of it is read before any of it runs: this file may be replaced meanwhile.
main "$@"
