#!/bin/sh
# Install what the project needs on Debian: packages (as root), a virtual environment, bytecode.
# Quick when nothing is to be done. Called by make.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

packages="python3-venv gcc libc6-dev make flex bison bc xz-utils lz4 libelf-dev libssl-dev openssl
  qemu-system-x86 qemu-system-common busybox-static acpica-tools iproute2 passt
  erofs-utils e2fsprogs gnupg kmod mmdebstrap"
if command -v dpkg-query >/dev/null; then
    # Debian 12 has it in qemu-system-common, Debian 13 in a package of its own.
    ! apt-cache show virtiofsd >/dev/null 2>&1 || packages="$packages virtiofsd"
    missing=
    for package in $packages; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed' ||
            missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        if [ "$(id -u)" = 0 ]; then
            echo "installing:$missing" >&2
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -qq
            # shellcheck disable=SC2086  # a list of words
            apt-get install -y -qq --no-install-recommends $missing >/dev/null
        else
            echo "these Debian packages are missing; install them, then run make again:" >&2
            echo "  sudo apt-get update && sudo apt-get install -y$missing" >&2
            exit 1
        fi
    fi
else
    echo "not a Debian system: install what corresponds to: $packages" >&2
fi

stamp=$venv/.installed
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    python3 -m venv "$venv"
    # "compat" puts a plain path entry into the environment; the default import hook costs every
    # start of the interpreter 12 ms.
    "$venv/bin/pip" install -q --disable-pip-version-check -e '.[dev]' \
        --config-settings editable_mode=compat
    touch "$stamp"
fi
# Bytecode ahead of time: in the lab, what Python compiles is thrown away each time.
"$venv/bin/python" -m compileall -q voidbox tests benchmarks
