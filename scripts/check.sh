#!/bin/sh
# `make check`: everything that is quick and needs neither root nor network namespaces. The type checker and the
# import contracts run beside the tests, for two cores.
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

tests=""
for directory in tests/unit tests/property tests/sim; do
    [ ! -d "$directory" ] || tests="$tests $directory"
done
# shellcheck disable=SC2086  # one word a directory
$bin/python -m pytest -q -m "not netns and not root and not slow" --durations=5 $tests || failed="$failed pytest"

wait "$mypy" || failed="$failed mypy"
tail -n 40 "$out/mypy"
wait "$imports" || { failed="$failed import-contracts"; cat "$out/imports"; }

[ -z "$failed" ] || { printf 'check: failed:%s\n' "$failed" >&2; exit 1; }
echo "check: all good"
