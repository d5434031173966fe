#!/bin/sh
# `make check`: everything that is quick and needs neither root nor network namespaces. For two cores
# half of the tests run beside the other half, as do the type checker and the import contracts.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
out=build/check
mkdir -p "$out"
failed=""
jobs=""
trap 'kill $jobs 2>/dev/null; exit 130' INT TERM

$bin/mypy >"$out/mypy" 2>&1 &
mypy=$!
$bin/lint-imports >"$out/imports" 2>&1 &
imports=$!
jobs="$mypy $imports"

$bin/ruff check --quiet . || failed="$failed ruff-check"
$bin/ruff format --check --quiet . || failed="$failed ruff-format"

quick="not netns and not root and not slow"
$bin/python -m pytest -q -p no:cacheprovider -m "$quick" --durations=5 tests/property tests/sim >"$out/pytest" 2>&1 &
others=$!
jobs="$jobs $others"
$bin/python -m pytest -q -m "$quick" --durations=5 tests/unit || failed="$failed unit-tests"
wait "$others" || failed="$failed property-and-simulator-tests"
cat "$out/pytest"

wait "$mypy" || failed="$failed mypy"
tail -n 40 "$out/mypy"
wait "$imports" || { failed="$failed import-contracts"; cat "$out/imports"; }

[ -z "$failed" ] || { printf 'check: failed:%s\n' "$failed" >&2; exit 1; }
echo "check: all good"
