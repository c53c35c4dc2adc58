# What the scripts of this folder share: finding and installing parts of the operating system. What is
# checked is what is used (a header, a program), not a package name: a part may come from Debian, from
# pyenv or from a cluster's modules, and only what is missing is installed.

step() { echo "==> $*"; }
stop() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }

missing=() # in words
packages=() # as Debian and Ubuntu call them
need() { # need WORDS PACKAGE COMMAND...: the part is there if the command succeeds
    if ! "${@:3}" >/dev/null 2>&1; then missing+=("$1"); packages+=("$2"); fi
}

as_root=()
can_install=false
if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        can_install=true
    elif sudo -n true 2>/dev/null; then
        can_install=true
        as_root=(sudo -n)
    fi
fi
apt_install() {
    # A fresh machine has no package lists; one broken third-party list is no reason to stop.
    "${as_root[@]}" apt-get update -qq || true
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

install_missing() { # install_missing SENTENCE: what to do on a system without apt
    local words
    [ ${#missing[@]} -gt 0 ] || return 0
    words=$(printf '%s, ' "${missing[@]}")
    words=${words%, }
    if ! command -v apt-get >/dev/null; then
        stop "missing: $words; $1"
    elif ! $can_install; then
        stop "missing: $words; run 'sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}', then this again."
    fi
    step "installing with apt-get: ${packages[*]}"
    apt_install "${packages[@]}" || stop "apt-get could not install ${packages[*]}; its own words are above."
}
