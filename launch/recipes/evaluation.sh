#!/usr/bin/env bash
# launch/recipes/evaluation.sh MODEL DIRECTORY NAME=PATH... [-- FLAG...]
#
# The files that the papers' models are evaluated on, those of the NAMEs given, in DIRECTORY:
#   wikitext2     wikitext2.h5: the test split as one text, in windows of 128 tokens as GISP (arXiv 2510.18030)
#                 measures perplexity. PATH is the split with a record a line of the text (field text)
#   boolq arc_easy arc_challenge hellaswag openbookqa winogrande piqa medqa
#                 NAME.h5, multiple choice; PATH is the split that lm-evaluation-harness takes: test of arc_easy,
#                 arc_challenge, openbookqa and medqa, validation of the others
#   gsm8k         gsm8k.h5: the test split, answered after five examples drawn from gsm8k_train=PATH
# FLAGs go to launch/tokenize.py for every file and win over the recipe's. After a failure the files that were
# complete are there: -- --force makes them again.
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_some "wikitext2 gsm8k gsm8k_train $choice_sets medqa" "$@"
if [ -n "${path_of[gsm8k]-}" ] && [ -z "${path_of[gsm8k_train]-}" ]; then
  die "$code_usage" "gsm8k_train=PATH is missing, from which the examples before each question are drawn. Try $0 --help."
fi
mkdir -p "$out"
if [ -n "${path_of[wikitext2]-}" ]; then
  tokenize --join '\n\n' --eos none --sequence-tokens 128 --out "$out/wikitext2.h5" "${flags[@]}" -- "${path_of[wikitext2]}"
fi
for name in $choice_sets medqa; do
  if [ -z "${path_of[$name]-}" ]; then continue; fi
  tokenize --task multiple_choice --layout "${name%_*}" --sequence-tokens 1024 --overlong truncate \
    --out "$out/$name.h5" "${flags[@]}" -- "${path_of[$name]}"
done
if [ -n "${path_of[gsm8k]-}" ]; then
  tokenize --task exact_match --shots-from "${path_of[gsm8k_train]}" --sequence-tokens 2048 \
    --out "$out/gsm8k.h5" "${flags[@]}" -- "${path_of[gsm8k]}"
fi
