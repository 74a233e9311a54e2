#!/usr/bin/env bash
# launch/recipes/gisp_cmqa.sh MODEL OUT.h5 NAME=PATH... [-- FLAG...]
#
# The question answering set of GISP (arXiv 2510.18030), CMQA: 512,000 tokens of the train splits of seven sets,
# the same budget for each, for the objective margin: every option is a row, right and wrong ones marked.
# NAMEs: boolq arc_easy arc_challenge hellaswag openbookqa winogrande piqa, all of them.
# FLAGs go to launch/tokenize.py and win over the recipe's. -- --gisp-as-released reproduces two faults of the
# released code: answers without the space before them, and WinoGrande's second option always taken for right.
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_arguments "$choice_sets" "$@"
mix_of_choices
tokenize --task multiple_choice --sequence-tokens 512 --tokens 512000 --seed 0 --out "$out" "${flags[@]}" "${mix[@]}"
