#!/usr/bin/env bash
# launch/recipes/gisp_gsm8k.sh MODEL OUT.h5 gsm8k=PATH [-- FLAG...]
#
# Calibration on GSM8K as GISP (arXiv 2510.18030) does for reasoning models, for the objective sft: 512,000 tokens
# of questions with their worked answers, which alone count. How many the paper takes and in which words it asks
# is not known here: the budget is that of its other sets, the words are those of lm-evaluation-harness.
# MODEL is the model's directory, PATH the train split (JSON or Parquet with question and answer).
# FLAGs go to launch/tokenize.py and win over the recipe's: -- --tokens 256000
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_arguments "gsm8k" "$@"
tokenize --template 'Question: {question}\nAnswer: {answer}' --loss-on answer --sequence-tokens 512 \
  --tokens 512000 --seed 0 --out "$out" "${flags[@]}" -- "${path_of[gsm8k]}"
