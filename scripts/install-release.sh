#!/bin/sh
# Installs a release, the first one too: install-release.sh [ARTIFACT] [OPTION…]. What it takes is what the node's own
# `install` takes, from options or from the environment:
#
#   ARTIFACT          CONSENSUS_NODE_ARTIFACT_PATH      the release's tarball
#   --version V       CONSENSUS_NODE_TARGET_VERSION     the version that it has to be
#   --sha256 HEX                                        what it has to hash to
#   --install-dir DIR CONSENSUS_NODE_INSTALL_DIR        default: ~/.consensus/node-runtime
#   --retention N     CONSENSUS_NODE_RELEASE_RETENTION  how many releases are kept; default: 3
#   --probation N     CONSENSUS_NODE_PROBATION          seconds that it has to reconnect
#   --allow-older                                       take it also where it is older than what ran here
#
# There is one installer, the node's. It is run from the current release; where there is none that can, from the
# archive: its program is taken out into a folder that nobody else can read, after the hash was checked where it is
# given, and run from there. Nothing but the program is unpacked here.
#
# Exit codes are those of the node: 0 installed, 2 wrong usage, 4 the release is not taken, 70 this machine failed.
# POSIX sh; beyond that tar with gzip, mktemp, and one of sha256sum, shasum, openssl where a hash is given.
set -u

say() {
    printf 'install-release: %s\n' "$*" >&2
}

# fail CODE WORD…
fail() {
    code=$1
    shift
    say "$*"
    exit "$code"
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

# is_foreign PROGRAM: whether it is for another machine than this. A shell would take one for a script.
is_foreign() {
    its=$(header "$1")
    [ -n "$its" ] && [ "$its" != "$(header /bin/sh)" ]
}

# hash FILE: its SHA-256 in hex.
hash() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1"
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 <"$1"
    else
        openssl dgst -sha256 -r <"$1"
    fi | sed 's/[^0-9a-f].*//'
}

# read_arguments ARGUMENT…: sets `artifact`, `sha256` and `dir` to what is said. The installer reads them all again.
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --sha256=*) sha256=${1#*=} ;;
        --install-dir=*) dir=${1#*=} ;;
        --sha256 | --install-dir | --version | --retention | --probation)
            [ $# -ge 2 ] || fail 2 "$1 needs a value; see --help"
            case $1 in
            --sha256) sha256=$2 ;;
            --install-dir) dir=$2 ;;
            esac
            shift
            ;;
        -h | --help)
            sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p;}' "$0"
            exit 0
            ;;
        -*) ;;
        *) artifact=$1 ;;
        esac
        shift
    done
}

# can_install PROGRAM
can_install() {
    [ -f "$1" ] && [ -x "$1" ] && ! is_foreign "$1" && "$1" install --help >/dev/null 2>&1
}

# shellcheck disable=SC2317 # a trap calls it
clean_up() {
    [ -z "$private" ] || rm -rf -- "$private"
}

# take_out MEMBER: a member of the archive on standard output, so that nothing of the archive names a file. No program
# comes near the bound: it is 256 MiB, or 512 where the shell counts in other blocks.
take_out() {
    (
        ulimit -f 524288
        tar -xzOf "$private/release.tgz" "$1" 2>/dev/null || tar -xzOf "$private/release.tgz" "./$1" 2>/dev/null
    )
}

# unpack_installer: sets `program` to that of the archive.
unpack_installer() {
    command -v tar >/dev/null 2>&1 || fail 70 'there is no tar on this machine: install it (and gzip)'
    umask 077
    private=$(mktemp -d "${TMPDIR:-/tmp}/consensus-node.XXXXXX") ||
        fail 70 "no folder can be made in ${TMPDIR:-/tmp}: set TMPDIR to one that can be written"
    # What is checked and what is run are the same bytes, whatever happens to the artifact's name.
    cp -- "$artifact" "$private/release.tgz" || fail 70 "$artifact cannot be copied to $private"
    if [ -n "$sha256" ]; then
        found=$(hash "$private/release.tgz" 2>/dev/null)
        [ -n "$found" ] ||
            fail 70 'the hash cannot be checked: there is none of sha256sum, shasum and openssl on this machine'
        wanted=$(printf '%s' "${sha256#sha256:}" | tr 'A-F' 'a-f')
        [ "$found" = "$wanted" ] || fail 4 "$artifact: its SHA-256 is $found, not $wanted"
    fi
    program=$private/consensus-node
    take_out bin/consensus-node >"$program"
    [ -s "$program" ] || fail 4 "$artifact is no release: it is not a tar archive with gzip that has bin/consensus-node"
    chmod 700 "$program"
    if is_foreign "$program"; then
        is_for=$(take_out release-manifest.json | sed -n 's/.*"platform": *"\([a-z0-9_-]*\)".*/\1/p')
        fail 4 "$artifact: its program is for another machine (${is_for:-unknown}) than this ($(uname -s) $(uname -m))"
    fi
    "$program" install --help >/dev/null 2>&1
    case $? in
    0) ;;
    126) fail 70 "programs cannot be run from $private: set TMPDIR to a folder where they can" ;;
    *) fail 4 "$artifact: its program does not run on this machine, or cannot install" ;;
    esac
}

main() {
    artifact=${CONSENSUS_NODE_ARTIFACT_PATH:-}
    dir=${CONSENSUS_NODE_INSTALL_DIR:-}
    sha256=
    private=
    read_arguments "$@"
    [ -n "$dir" ] || dir=${HOME:-}/.consensus/node-runtime
    [ -n "$artifact" ] || fail 2 'which release? give its tarball, or set CONSENSUS_NODE_ARTIFACT_PATH; see --help'
    [ -e "$artifact" ] || fail 2 "$artifact: there is no such file"
    [ -f "$artifact" ] || fail 2 "$artifact: not an ordinary file"
    [ -r "$artifact" ] || fail 70 "$artifact cannot be read by $(id -un)"
    above=$dir
    while [ ! -e "$above" ]; do above=$(dirname "$above"); done
    [ -d "$above" ] || fail 70 "$above is not a folder"
    [ -w "$above" ] || fail 70 "$above cannot be written by $(id -un)"

    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    program=$dir/current/bin/consensus-node
    can_install "$program" || unpack_installer
    "$program" install "$@"
    exit $?
}

# All of it is read before any of it runs: this file may be replaced meanwhile.
main "$@"
