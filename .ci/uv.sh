#!/usr/bin/env bash
# Runs the uv of an environment against the index that pip's configuration names, which uv does not read.
# Usage: uv.sh ENVIRONMENT ARGUMENT...
environment=$1
shift
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$environment/bin/python" -m pip config get global.index-url 2>/dev/null)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
exec "$environment/bin/uv" "$@"
