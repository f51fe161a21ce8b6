#!/usr/bin/env bash
# The validator's and the layers' fast tests on other versions, each in a virtual environment of its own:
#
#     scripts/check_versions.sh                      # the oldest that is promised, and the newest
#     scripts/check_versions.sh python3.11:2.13.0    # PYTHON:TORCH, as many as one likes; "newest" is pip's newest torch
#
# Without torchvision and what else only the training runs need. Prints a line a version, and exits with 1 where one fails.
set -uo pipefail
cd "$(dirname "$0")/.."
suite=(tests/validation tests/zoo tests/conversion tests/kernels tests/test_{torch,layout}.py
    tests/test_{equations,activations,costs,functions,nn,nn_lazy,network,network_contract,network_cost}.py)
needs=(pytest pytest-xdist hypothesis expecttest numpy tensorboard ninja setuptools)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

check() {
    local python=$1 torch=$2 log=$work/log home=$work/venv started=$SECONDS
    rm -rf "$home"
    local wanted=torch
    [ "$torch" = newest ] || wanted="torch==$torch"
    if ! { "$python" -m venv "$home" && "$home/bin/pip" install --quiet "$wanted" "${needs[@]}" &&
        "$home/bin/pip" install --quiet --no-build-isolation hatchling editables &&
        "$home/bin/pip" install --quiet --no-build-isolation -e .; } >"$log" 2>&1; then
        echo "$python, torch $torch: cannot be installed: $(grep -i error "$log" | tail -n 1)"
        failed=1
        return
    fi
    local status=0
    "$home/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider "${suite[@]}" >"$log" 2>&1 || status=1
    local versions
    versions=$("$home/bin/python" -c 'import sys, torch; print("Python %d.%d.%d, torch" % sys.version_info[:3], torch.__version__)')
    echo "$versions: $(tail -n 1 "$log"); $((SECONDS - started)) s with the installation"
    if [ $status -ne 0 ]; then
        grep -E '^(FAILED|ERROR)' "$log" | head -n 40
        failed=1
    fi
}

[ $# -gt 0 ] || set -- python3.10:2.9.1 python3.13:newest
for version in "$@"; do
    check "${version%%:*}" "${version#*:}"
done
exit $failed
