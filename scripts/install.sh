#!/bin/sh
# Brings the node to a machine for the first time: install.sh RELEASE --sha256 HEX [OPTION…].
#
#   RELEASE           the release's tarball: a file, or an https:// URL that it is fetched from
#   --sha256 HEX      what it has to hash to: take it from where you trust it, not from beside the tarball
#
# Other options go to scripts/install-release.sh of the release, as they are: --install-dir DIR, --version V and so on.
#
# Where it goes is the folder after --install-dir, or CONSENSUS_NODE_INSTALL_DIR, or ~/.consensus/node-runtime. The next
# command, `setup` of the installed program, does everything from there to a node that is kept running; the last lines say
# how it is called.
#
# What it does, and nothing else: it fetches the tarball where that is elsewhere, into a folder that nobody else can
# read; checks its hash; takes scripts/install-release.sh out of it and runs that, which installs the release; and removes
# that folder again. It needs no root and asks for none. It starts nothing, and
# changes nothing outside the install directory.
#
# Exit codes: 0 installed, 2 wrong usage, 4 the release is not what its hash says, or not taken, 69 it cannot be
# fetched, 70 this machine failed. POSIX sh; beyond that tar with gzip, mktemp, curl or wget for a URL, and one of
# sha256sum, shasum and openssl.
set -u

# The largest release that is fetched, in bytes.
most=268435456

say() {
    printf 'install: %s\n' "$*" >&2
}

# fail CODE WORD…
fail() {
    code=$1
    shift
    say "$*"
    exit "$code"
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

# shellcheck disable=SC2317 # a trap calls it
clean_up() {
    [ -z "$private" ] || rm -rf -- "$private"
}

# fetch URL FILE: https alone; of curl, redirects too. wget cannot be kept to that over a redirect, so there the hash
# alone counts. A server that never ends is cut off by the shell: neither program does that where no length was said.
fetch() (
    ulimit -f $((most / 512))
    if command -v curl >/dev/null 2>&1; then
        curl --proto '=https' --proto-redir '=https' --tlsv1.2 --fail --location --silent --show-error \
            --max-filesize "$most" --retry 3 --output "$2" -- "$1"
    elif command -v wget >/dev/null 2>&1; then
        wget --https-only --quiet --tries=3 --output-document="$2" -- "$1"
    else
        fail 70 'there is neither curl nor wget on this machine: fetch the tarball yourself, and give its path'
    fi
)

main() {
    release=
    sha256=
    private=
    help=
    dir=${CONSENSUS_NODE_INSTALL_DIR:-${HOME:-}/.consensus/node-runtime}
    # What is not for this script goes to the installer: the arguments are turned over once, one by one.
    left=$#
    while [ "$left" -gt 0 ]; do
        word=$1
        shift
        left=$((left - 1))
        case $word in
        -h | --help) help=1 ;;
        --sha256=*) sha256=${word#*=} ;;
        --install-dir=*)
            dir=${word#*=}
            set -- "$@" "$word"
            ;;
        --sha256 | --install-dir | --version | --retention | --probation)
            [ "$left" -gt 0 ] || fail 2 "$word needs a value; see --help"
            value=$1
            shift
            left=$((left - 1))
            if [ "$word" = --sha256 ]; then
                sha256=$value
            else
                [ "$word" != --install-dir ] || dir=$value
                set -- "$@" "$word" "$value"
            fi
            ;;
        -*) set -- "$@" "$word" ;;
        *)
            [ -z "$release" ] || fail 2 "one release at a time: $release or $word?"
            release=$word
            ;;
        esac
    done
    if [ -n "$help" ]; then
        sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p;}' "$0"
        exit 0
    fi
    [ -n "$release" ] || fail 2 'which release? give its tarball, or the https:// URL of it; see --help'
    sha256=$(printf '%s' "${sha256#sha256:}" | tr 'A-F' 'a-f')
    case $sha256 in
    '') fail 2 '--sha256 is missing: a tarball that nobody has checked is not run; see --help' ;;
    *[!0-9a-f]*) fail 2 '--sha256: 64 hexadecimal digits' ;;
    esac
    [ "${#sha256}" -eq 64 ] || fail 2 '--sha256: 64 hexadecimal digits'
    command -v tar >/dev/null 2>&1 || fail 70 'there is no tar on this machine: install it (and gzip)'
    if [ "$(id -u)" = 0 ]; then
        say 'you are root, which this needs not be: the node is installed for root, and setup makes no service of it'
    fi

    umask 077
    private=$(mktemp -d "${TMPDIR:-/tmp}/consensus-install.XXXXXX") ||
        fail 70 "no folder can be made in ${TMPDIR:-/tmp}: set TMPDIR to one that can be written"
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    tarball=$private/release.tgz
    case $release in
    https://*)
        say "fetching $release"
        fetch "$release" "$tarball"
        code=$?
        [ "$code" -ne 70 ] || exit 70
        [ "$code" -eq 0 ] || fail 69 "$release cannot be fetched, or is larger than any release"
        ;;
    *://*) fail 2 "$release: only https:// URLs are fetched" ;;
    *)
        [ -f "$release" ] || fail 2 "$release: there is no such file"
        # What is checked and what is run are the same bytes, whatever happens to the file's name.
        cp -- "$release" "$tarball" || fail 70 "$release cannot be copied to $private"
        ;;
    esac
    found=$(hash "$tarball" 2>/dev/null)
    [ -n "$found" ] ||
        fail 70 'the hash cannot be checked: there is none of sha256sum, shasum and openssl on this machine'
    [ "$found" = "$sha256" ] || fail 4 "$release: its SHA-256 is $found, not $sha256; nothing was installed"
    say 'the hash is right'

    installer=$private/install-release.sh
    tar -xzOf "$tarball" scripts/install-release.sh >"$installer" 2>/dev/null ||
        tar -xzOf "$tarball" ./scripts/install-release.sh >"$installer" 2>/dev/null
    [ -s "$installer" ] || fail 4 "$release is no release: it has no scripts/install-release.sh"
    sh "$installer" "$tarball" --sha256 "$sha256" "$@"
    code=$?
    if [ "$code" -eq 0 ]; then
        # Not by run-node.sh, whose node cannot ask anything: it runs beside the script.
        say 'installed. Next, with the URL of your network, and then to see how the node is:'
        say "  '$dir/current/bin/consensus-node' setup --server https://…"
        say "  '$dir/current/bin/consensus-node' status"
    fi
    exit "$code"
}

# All of it is read before any of it runs.
main "$@"
