#!/usr/bin/env bash
# launch/recipes/gisp_medqa.sh MODEL OUT.h5 medqa=PATH [-- FLAG...]
#
# Calibration on MedQA as GISP (arXiv 2510.18030) does, for the objective margin: 512,000 tokens of questions with
# four endings, whose letters are the options. MODEL is the model's directory, PATH the train split (JSON or
# Parquet with sent1, ending0 to ending3 and label).
# FLAGs go to launch/tokenize.py and win over the recipe's: -- --tokens 256000. -- --gisp-as-released leaves out the
# space before the letters, as the released code does.
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_arguments "medqa" "$@"
tokenize --task multiple_choice --layout medqa --sequence-tokens 512 --tokens 512000 --seed 0 --out "$out" \
  "${flags[@]}" -- "${path_of[medqa]}"
