#!/bin/sh
# Makes sure that PM2 is there: ensure-pm2.sh [--yes] [--dry-run] [--logrotate]. On macOS by Homebrew, Node and npm; on
# Linux by the package manager and npm. Each step is said, and asked for first.
#
#   --yes        does not ask
#   --dry-run    says what it would do, and does none of it
#   --logrotate  has PM2 bound its log files too (the module pm2-logrotate)
#
# Where npm's folder for programs is not yours, PM2 goes to ~/.local. Nothing that came from the web is piped into a
# shell. POSIX sh.
set -eu

PM2=pm2@6
MODULE=pm2-logrotate

say() {
    printf 'ensure-pm2: %s\n' "$*"
}

fail() {
    printf 'ensure-pm2: %s\n' "$*" >&2
    exit 70
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# step COMMAND…: says it, asks, does it.
step() {
    if [ "$dry_run" -eq 1 ]; then
        say "would run: $*"
        return 0
    fi
    say "next: $*"
    if [ "$yes" -eq 0 ]; then
        [ -t 0 ] || fail "there is no terminal to ask at: say --yes, or run that yourself"
        printf 'ensure-pm2: do it? [y/N] '
        answer=
        read -r answer || :
        case $answer in
        y | Y | yes) ;;
        *) fail 'nothing was done' ;;
        esac
    fi
    "$@"
}

# as_root COMMAND…
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        step "$@"
    elif has sudo; then
        step sudo "$@"
    else
        fail "run this as root: $*"
    fi
}

install_node() {
    if [ "$(uname -s)" = Darwin ]; then
        has brew || fail 'Homebrew is missing: install it with the package from its site, brew.sh, and run this again'
        step brew install node
    elif has apt-get; then
        as_root apt-get install -y nodejs npm
    elif has dnf; then
        as_root dnf install -y nodejs npm
    elif has pacman; then
        as_root pacman -S --needed --noconfirm nodejs npm
    elif has zypper; then
        as_root zypper --non-interactive install nodejs npm
    elif has apk; then
        as_root apk add nodejs npm
    else
        fail 'no package manager that is known here: install Node and npm, and run this again'
    fi
}

install_pm2() {
    prefix=$(npm prefix --global 2>/dev/null) || prefix=
    modules=$prefix/lib
    [ -d "$modules" ] || modules=$prefix
    if [ -n "$prefix" ] && [ -w "$modules" ]; then
        step npm install --global --no-fund --no-audit "$PM2"
        PATH=$prefix/bin:$PATH
    else
        step npm install --global --no-fund --no-audit --prefix "${HOME:?}/.local" "$PM2"
        PATH=$HOME/.local/bin:$PATH
        say "PM2 is in $HOME/.local/bin: have that in your PATH"
    fi
}

main() {
    yes=0
    dry_run=0
    logrotate=0
    for argument in "$@"; do
        case $argument in
        --yes) yes=1 ;;
        --dry-run) dry_run=1 ;;
        --logrotate) logrotate=1 ;;
        *)
            printf 'ensure-pm2: %s is not allowed; allowed: --yes, --dry-run, --logrotate\n' "$argument" >&2
            exit 2
            ;;
        esac
    done
    if has pm2; then
        say "PM2 is here: $(command -v pm2)"
    else
        if has node && has npm; then
            say "Node is here: $(command -v node)"
        else
            install_node
        fi
        if [ "$dry_run" -eq 1 ] && ! has npm; then
            say "would run: npm install --global $PM2"
        else
            install_pm2
        fi
        [ "$dry_run" -eq 1 ] || has pm2 || fail 'PM2 was installed and is not found: look at PATH'
    fi
    [ "$logrotate" -eq 0 ] || step pm2 install "$MODULE"
    [ "$dry_run" -eq 1 ] || say 'done; next: start-pm2.sh'
}

main "$@"
