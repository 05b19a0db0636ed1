#!/usr/bin/env bash
# Runs the tests on each of $PYTHONS that is present; `make test-all` calls it.
set -uo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}" "${PYTHONS:=3.11 3.12 3.13}"
verdicts=() failed=0

find_python() { # prints an interpreter of version $1 that runs
    local candidate release
    for candidate in "$PYTHON" "python$1"; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            echo "$candidate"
            return
        fi
    done
    # pyenv's shim of a version that is installed and not selected does not run; the interpreter itself does.
    release=$(pyenv whence "python$1" 2>/dev/null | tail -n 1) && [ -n "$release" ] && echo "$(pyenv prefix "$release")/bin/python$1"
}

present=() pythons=()
for version in $PYTHONS; do
    if python=$(find_python "$version"); then
        present+=("$version") pythons+=("$python")
        make --no-print-directory "$VENV-$version/.dev-installed" PYTHON="$python" VENV="$VENV-$version" &
    else
        verdicts+=("$version: skipped, no python$version here")
    fi
done
wait # the environments are made at the same time

for index in "${!present[@]}"; do
    version=${present[$index]}
    echo "== Python $version"
    if make --no-print-directory test PYTHON="${pythons[$index]}" VENV="$VENV-$version"; then
        verdicts+=("$version: passed")
    else
        verdicts+=("$version: FAILED")
        failed=1
    fi
done
printf '%s\n' "== Tests by Python version" "${verdicts[@]}"
exit $failed
