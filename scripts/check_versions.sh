#!/usr/bin/env bash
# The short suite (validator and layers) under other versions, each in a temporary virtual environment, and a table.
#
#   scripts/check_versions.sh                  the oldest Python and torch that pyproject.toml promises, and the newest
#   scripts/check_versions.sh python3:2.13.0   these: PYTHON:TORCH, as many as one likes
set -uo pipefail
cd "$(dirname "$0")/.."

oldest_python=$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
oldest_torch=$(sed -n 's/^dependencies = \["torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
newest_python=3.13
[ $# -gt 0 ] || set -- "$oldest_python:$oldest_torch" "$newest_python:newest"

# Neither torchvision nor what needs it, as the training run does; no other library that the layers are tested in.
suite=(tests/{validation,watching,mutation,cli,zoo/test_bar.py,kernels,conversion,monitor}
    tests/test_{torch,activations,costs,equations,functions,network,network_contract,network_cost,nn,nn_lazy}.py
    tests/dropin/test_{compile,forward_mode,func,higher_order}.py)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
row="%-8s %-14s %7s %7s %8s %8s  %s\n"
# shellcheck disable=SC2059
table=$(printf "$row" Python torch passed failed skipped seconds "")
failures=0

python_of() {
    for python in "$1" "python$1" ~/.pyenv/versions/"$1".*/bin/python; do
        "$python" -c "" 2>/dev/null && echo "$python" && return
    done
    echo "ERROR: there is no Python $1" >&2
    return 1
}

install() { # PYTHON TORCH FOLDER
    local python torch=torch
    [ "$2" = newest ] || torch="torch==$2.*"
    python=$(python_of "$1") && "$python" -m venv "$3" && "$3/bin/pip" install --quiet "$torch" -e ".[test-short]"
}

count() { # WORD FILE: the number before it in the last line of pytest
    tail -1 "$2" | grep -oE "[0-9]+ $1" | grep -oE "[0-9]+" || echo 0
}

add() {
    # shellcheck disable=SC2059
    table+=$'\n'$(printf "$row" "$@")
}

check() { # PYTHON TORCH
    local folder="$work/$1-$2" log="$work/$1-$2.log" found start failed
    if ! install "$1" "$2" "$folder" 2>"$log"; then
        add "$1" "$2" - - - - "not installed: $(grep -m1 ERROR "$log")"
        return 1
    fi
    found=$("$folder/bin/python" -W ignore -c "import torch; print(torch.__version__)")
    echo "Python $1, torch $found"
    start=$SECONDS
    "$folder/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider "${suite[@]}" | tee "$log"
    failed=${PIPESTATUS[0]}
    add "$1" "$found" "$(count passed "$log")" "$(($(count failed "$log") + $(count error "$log")))" \
        "$(count skipped "$log")" $((SECONDS - start)) "$([ "$failed" = 0 ] || echo "pytest ended with $failed")"
    return "$failed"
}

for versions in "$@"; do
    check "${versions%%:*}" "${versions#*:}" || failures=$((failures + 1))
done
echo "$table"
exit $((failures > 0))
