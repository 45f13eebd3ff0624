#!/usr/bin/env bash
# Unpacks Debian's Rust 1.85, the oldest compiler that we promise, into target/msrv: .ci/rust-1.85.sh [ARCHITECTURE…]
#
# The compiler is then target/msrv/rustc, for cargo's RUSTC. ARCHITECTURE is Debian's name (armhf, arm64) of one that it is
# to build for as well. Nothing is installed, and apt's own lists are left as they are: they know this machine's
# architecture alone, so those of the others have a folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/target/msrv
mkdir -p "$root"
cd "$root"

candidate() { # candidate APT-CACHE…: the newest version of 1.85
    "$@" madison libstd-rust-web-dev | awk '$3 ~ /^1\.85\./ { print $3; exit }'
}

unpack() { # unpack: what apt brought here
    local package
    for package in *.deb; do
        dpkg-deb -x "$package" .
        rm -- "$package"
    done
}

missing() { # missing ARCHITECTURE
    echo "apt knows no libstd-rust-web-dev 1.85 for $1: it is in Debian 12" >&2
    exit 1
}

if ! [ -x rustc ]; then
    rm -f -- *.deb
    version=$(candidate apt-cache)
    if [ -z "$version" ]; then
        apt-get update -qq
        version=$(candidate apt-cache)
        [ -n "$version" ] || missing "$(dpkg --print-architecture)"
    fi
    apt-get download -qq "rustc-web=$version" "libstd-rust-web-1.85=$version" "libstd-rust-web-dev=$version" libllvm19
    unpack
    # Its libraries are where no other program looks for any. bash, for other shells drop the variables of cargo that have
    # a hyphen in their name.
    cat >new <<'SCRIPT'
#!/usr/bin/env bash
root=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu):$root/usr/lib/llvm-19/lib exec "$root/usr/bin/rustc" "$@"
SCRIPT
    chmod +x new
    # Last, so that what is there is whole.
    mv new rustc
fi

for architecture in "$@"; do
    case $architecture in
        armhf) target=armv7-unknown-linux-gnueabihf ;;
        arm64) target=aarch64-unknown-linux-gnu ;;
        *) echo "$architecture: there are armhf and arm64" >&2; exit 2 ;;
    esac
    [ -e "usr/lib/rustlib/$target/whole" ] && continue
    lists=$root/lists-$architecture
    mkdir -p "$lists/partial"
    of=(-o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o "Dir::State::Lists=$lists"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    # One list of several may be out of order: whether the package is known says whether that matters.
    apt-get "${of[@]}" update -qq || true
    version=$(candidate apt-cache "${of[@]}")
    [ -n "$version" ] || missing "$architecture"
    rm -f -- *.deb
    apt-get "${of[@]}" download -qq "libstd-rust-web-dev=$version"
    unpack
    rm -r "$lists"
    touch "usr/lib/rustlib/$target/whole"
done
