#!/usr/bin/env bash
# Makes .venv with everything the project needs; `make setup` calls it. Safe to run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source envs/system.sh

# Without this stamp make starts here again, so a set-up that fails half-way is never taken for whole.
rm -f .venv/.complete

# A .venv that works keeps its interpreter, whichever python3 comes first today.
python=${PYTHON:-python3}
if .venv/bin/python -m pip --version >/dev/null 2>&1; then python=.venv/bin/python; fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    stop "'$python' does not run: install Python 3.11 or newer, or name it with 'make setup PYTHON=/path/to/python3'."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed and '$python' is $version: name another, for example 'make setup PYTHON=python3.11'."

# --- The system's parts -------------------------------------------------------------------------
# FFCV comes as source only: its build wants a C++ compiler, Python's headers, and OpenCV and
# libjpeg-turbo as pkg-config sees them. The opencv-python wheel loads libGL. Snakemake draws its
# graphs with dot.
need "a C++ compiler" g++ command -v g++
need "pkg-config" pkg-config command -v pkg-config
need "OpenCV's headers" libopencv-dev pkg-config --exists opencv4
need "libjpeg-turbo's headers" libturbojpeg0-dev pkg-config --exists libturbojpeg
need "Python's headers" "python$version-dev" "$python" -c \
    'import os, sysconfig; open(os.path.join(sysconfig.get_paths()["include"], "Python.h"))'
need "Python's venv" "python$version-venv" "$python" -c 'import ensurepip, venv'
need "Graphviz" graphviz command -v dot
need "libGL" libgl1 "$python" -c 'import ctypes; ctypes.CDLL("libGL.so.1")'

install_missing "install them with this system's package manager, or work in the conda environment of envs/environment.yaml."

# The real images of the demo. Nothing else needs them, so their absence stops nobody.
if [ ! -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ]; then
    if $can_install; then
        step "installing with apt-get: dataset-fashion-mnist (the demo's images)"
        apt_install dataset-fashion-mnist || can_install=false
    fi
    $can_install ||
        step "note: the package dataset-fashion-mnist (Debian, Ubuntu) is not here; torchvision will download Fashion-MNIST for the demo."
fi

# --- Python's parts -----------------------------------------------------------------------------
if [ "$python" != .venv/bin/python ]; then
    step "creating .venv with $python ($version)"
    "$python" -m venv --clear .venv
fi
# Twice quiet leaves errors, a failed build's own words among them.
pip() { .venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

# Setuptools first: what comes as source (FFCV and three small packages) is then built with the
# pinned one, not with whatever is newest on the day. PEP 517 is asked for because the pip of
# Debian 12 would fall back to "setup.py install".
step "installing the Python packages of envs/*.lock (2 to 5 GB, some minutes)"
pip install "$(grep '^setuptools==' envs/requirements.lock)"
pip install --no-build-isolation --use-pep517 \
    -r envs/requirements.lock -r envs/development.lock
step "installing the project itself, editable"
pip install --no-deps --no-build-isolation -e .

touch .venv/.complete
