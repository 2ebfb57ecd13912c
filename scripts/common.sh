# What the scripts share: finding Python, installing Debian packages, and the virtualenv of this checkout. POSIX sh, to be sourced.
#
# Nothing is installed twice: a package only where its command or file is missing, the virtualenv only where the project
# file has changed since. Only root installs packages; anybody else is told what to install.

cd "$(dirname "$0")/.."
checkout=$PWD
venv=$checkout/.venv
# An ordinary user's PATH leaves out the directories where nginx and php-fpm live.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

fail() {
    say "$@"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# install_packages PACKAGE...: by apt-get as root; otherwise say what to do and end.
# Services that come with a package (nginx, php-fpm) are not started: Debian's invoke-rc.d asks policy-rc.d first, and 101
# means "forbidden by policy" (invoke-rc.d(8)). A policy of the machine's own is left alone.
install_packages() {
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        fail "please install these first (Debian's names), as root: apt-get install $*"
    fi
    say "installing by apt: $*"
    policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt_log=$(mktemp)
    if ! { DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$apt_log" 2>&1 </dev/null; then
        cat "$apt_log" >&2
        rm -f "$apt_log"
        fail "apt-get could not install: $*"
    fi
    rm -f "$apt_log"
    if [ -n "$policy" ]; then
        rm -f "$policy"
        trap - EXIT INT TERM
    fi
}

# new_enough PYTHON: it is there, it is 3.11 or newer, and it can make a virtualenv (Debian keeps that apart, in python3-venv).
new_enough() {
    have "$1" && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# for_everybody PYTHON: other users can execute it too. The tests of root start managers and commands as another user, which
# fails with an interpreter below root's own home (pyenv, uv).
for_everybody() {
    [ "$(id -u)" != 0 ] || ! have setpriv || setpriv --reuid=65534 --regid=65534 --clear-groups "$1" -c "" 2>/dev/null
}

find_python() {
    for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if new_enough "$python" && { [ "$python" = "${PYTHON:-}" ] || for_everybody "$python"; }; then
            return 0
        fi
    done
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$python"; then
            return 0
        fi
    done
    return 1
}

# make_virtualenv EXTRA: the checkout installed into .venv, editable; EXTRA is "" or the name of an extra ("dev").
# The stamp holds what it was made from, so that it is made anew when pyproject.toml or the place of the checkout changes.
make_virtualenv() {
    wanted=$(cksum <pyproject.toml)" $checkout"
    for extra in "$1" dev; do
        if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp-$extra" 2>/dev/null)" = "$wanted" ]; then
            return 0
        fi
    done
    if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        find_python || install_packages python3-venv
        find_python || fail "fcgimgr needs Python 3.11 or newer with its venv module; set PYTHON=/path/to/python3 to name one"
        say "making the virtualenv .venv with $("$python" --version)"
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    say "installing fcgimgr${1:+ and what its tests need} into .venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
    rm -f "$venv"/.stamp-*
    printf '%s\n' "$wanted" >"$venv/.stamp-$1"
}
