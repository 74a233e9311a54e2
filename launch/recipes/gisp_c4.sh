#!/usr/bin/env bash
# launch/recipes/gisp_c4.sh MODEL OUT.h5 c4=PATH [-- FLAG...]
#
# The general calibration set of GISP (arXiv 2510.18030) for the objective causal_lm: 2,000 rows of 256 tokens of
# C4, each from a drawn place of a document that has more, as the released code takes them. MODEL is the model's
# directory, PATH a file or a directory of C4 (field text).
# FLAGs go to launch/tokenize.py and win over the recipe's: -- --sequence-tokens 128 --seed 5
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_arguments "c4" "$@"
tokenize --window --sequence-tokens 256 --max-sequences 2000 --seed 0 --out "$out" "${flags[@]}" -- "${path_of[c4]}"
