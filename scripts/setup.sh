#!/bin/sh
# Brings a checkout to where `make $1` can run, on a machine that has only Python 3.11 and make:
#   scripts/setup.sh check|mutants|plugin|demo|test|bench
# Debian packages are installed where they are missing and we are root; otherwise the exact command is printed
# and the exit status is 2. Stamps in .venv make a second run cost next to nothing.
set -eu
cd "$(dirname "$0")/.."
purpose=${1:-check}
venv=.venv
missing=""

say() { printf '%s\n' "setup: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
need() { missing="$missing $1"; } # a Debian package

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3 python3.12 python3.13; do
        if has "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python >= 3.11 found; install one (Debian 12 and later: apt-get install python3), or say PYTHON=/path"
    exit 2
}

look_for_commands() {
    # A checkout without its environment needs venv; its parts are packages of their own on Debian.
    if [ ! -x "$venv/bin/python" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        need "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    fi
    [ "$purpose" = check ] && return
    [ "$purpose" = mutants ] && { has patch || need patch; return 0; }
    has gcc || need gcc
    [ -e /usr/include/stdio.h ] || need libc6-dev
    has musl-gcc || need musl-tools
    [ "$purpose" = plugin ] && return
    has ip || need iproute2
    has nft || need nftables
    [ "$(id -u)" = 0 ] || return 0
    # The rest serves tests and benchmarks that want real root; for others they are skipped, by name.
    [ "$purpose" = demo ] && return
    [ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || need containernetworking-plugins
    [ "$purpose" = bench ] && return
    has patch || need patch
    has containerd || need containerd
    has runc || need runc
    has conntrack || need conntrack
    has iptables-nft || need iptables
    # Containers made of it have no libraries, so it must be the static one.
    { has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; } || need busybox-static
}

install_packages() {
    if [ "$(id -u)" != 0 ]; then
        say "missing Debian packages; as root, run:"
        printf '    apt-get update && apt-get install -y --no-install-recommends%s\n' "$missing" >&2
        exit 2
    fi
    if ! has apt-get; then
        say "this is not Debian or Ubuntu; install what corresponds to:$missing"
        exit 2
    fi
    say "installing Debian packages:$missing"
    running_before=$(pgrep -x containerd 2>/dev/null || true)
    export DEBIAN_FRONTEND=noninteractive
    export RUNLEVEL=1 # packages then start no services, where no systemd does it for them
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086  # one word a package
    apt-get install -y -q --no-install-recommends $missing >/dev/null
    if [ -z "$running_before" ] && pgrep -x containerd >/dev/null 2>&1; then
        say "note: the package started the service containerd; nothing here needs it"
    fi
}

# What the environment was made from. A virtual environment cannot be moved, so the place counts.
wanted_stamp() {
    printf '%s\n' "$PWD"
    cksum requirements-dev.lock scripts/setup.sh
}

make_environment() {
    if [ -f "$venv/.made-from" ] && [ "$(head -n 1 "$venv/.made-from")" != "$PWD" ]; then
        say "the checkout was moved: making $venv again"
        "$python" -m venv --clear "$venv"
    elif ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "making $venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing Python packages from requirements-dev.lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
        -r requirements-dev.lock
    # The package itself is used from where it lies: a path file and a launcher do what an editable
    # installation would, without needing the build backend.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$PWD" >"$site/vpccni-checkout.pth"
    cat >"$venv/bin/.vpccni.tmp" <<EOF
#!$PWD/$venv/bin/python
import sys

from vpccni.__main__ import main

sys.exit(main())
EOF
    chmod 755 "$venv/bin/.vpccni.tmp"
    mv "$venv/bin/.vpccni.tmp" "$venv/bin/vpccni"
    wanted_stamp >"$venv/.made-from"
}

if [ ! -x "$venv/bin/python" ] || [ ! -f "$venv/.made-from" ] || [ "$(cat "$venv/.made-from")" != "$(wanted_stamp)" ]; then
    python=$(find_python)
    environment_is_current=false
else
    python=$venv/bin/python
    environment_is_current=true
fi
look_for_commands
[ -z "$missing" ] || install_packages
$environment_is_current || make_environment
[ "$purpose" = check ] || [ "$purpose" = mutants ] || ${MAKE:-make} --no-print-directory --silent -C plugin
