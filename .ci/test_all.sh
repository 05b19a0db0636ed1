#!/usr/bin/env bash
# Runs the tests on each supported Python that is present; `make test-all` calls it.
# SECONDS_LEFT bounds the whole; a version that it leaves no time for is named, and is no failure.
set -uo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}" "${SECONDS_LEFT:=3600}" "${VERSIONS:=3.11 3.12 3.13}"
own=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
verdicts=() failed=0

find_python() { # prints an interpreter of version $1 that runs
    if [ "$1" = "$own" ]; then echo "$PYTHON"; return; fi
    local candidate=python$1 release
    if "$candidate" -c '' 2>/dev/null; then echo "$candidate"; return; fi
    # pyenv's shim of a version that is installed and not selected does not run; the interpreter itself does.
    release=$(pyenv whence "$candidate" 2>/dev/null | tail -n 1) || return 1
    [ -n "$release" ] && candidate=$(pyenv prefix "$release")/bin/$candidate && "$candidate" -c '' 2>/dev/null && echo "$candidate"
}

for version in $VERSIONS; do
    left=$((SECONDS_LEFT - SECONDS))
    if ! python=$(find_python "$version"); then
        verdicts+=("$version: skipped, no python$version here")
        continue
    elif [ "$left" -lt 60 ]; then
        verdicts+=("$version: skipped, no time left")
        continue
    fi
    folder=$VENV-$version
    [ "$version" = "$own" ] && folder=$VENV
    echo "== Python $version ($folder)"
    log=$(mktemp)
    timeout --signal=INT --kill-after=20 "$left" make --no-print-directory test PYTHON="$python" VENV="$folder" ARGS=-q 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    closing=$(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1)
    rm -f "$log"
    if [ "$status" = 0 ]; then
        verdicts+=("$version: $closing")
    elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
        verdicts+=("$version: stopped after $left s, no verdict")
    else
        verdicts+=("$version: FAILED (exit code $status) $closing")
        failed=1
    fi
done
printf '%s\n' "== Tests by Python version" "${verdicts[@]}"
exit $failed
