#!/usr/bin/env bash
# launch/reproduce.sh [--out DIR] [--model DIR --texts NAME=FILE...] [--seeds N] [--claims N,...] ...
#
# Repeats in small, on a trained model, what both papers compare (arXiv 2510.18030 and 2601.02674), with a table,
# a plot and a verdict for each ordering that they claim: DIR/index.html, results.md, results.json, claim-N.csv.
# Sets up and builds what is missing. Called again with the same arguments it goes on where it was.
# Without --model: models/tri-qwen2 in the directory that ESPALIER_TEST_DATA names, else the small model of this tree.
# launch/reproduce.sh --options lists every flag.
#
# Exit codes: 0 done, 64 wrong usage, 75 stopped by a signal, otherwise that of the step that failed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments=("$@")
case ${1-} in
  -h | --help)
    print_usage "$0"
    exit 0
    ;;
  --options) arguments=(--help) ;;
esac
if [[ " $* " != *" --espalier"* ]] && [ "${1-}" != --options ]; then
  "$root/launch/setup.sh"
  "$root/launch/build.sh" release
fi
PYTHONPATH=$root/launch/python exec "$root/.venv/bin/python" -P -m espalier_reproduce "${arguments[@]}"
