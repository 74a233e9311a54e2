#!/usr/bin/env bash
# launch/recipes/hybrid.sh MODEL DIRECTORY NAME=PATH... [-- FLAG...]
#
# Four domains for one run, a file each in DIRECTORY with 128,000 tokens at most: web.h5 and code.h5 (full rows
# of 2048 tokens), math.h5 (questions with worked answers, which alone count: objective sft), commonsense.h5
# (options, right and wrong: objective margin).
# NAMEs, all of them: web, code (text, or JSON with the field text), math (JSON with question and answer), and
# for commonsense boolq arc_easy arc_challenge hellaswag openbookqa winogrande piqa.
# FLAGs go to launch/tokenize.py for every file and win over the recipe's. After a failure the files that were
# complete are there: -- --force makes them again.
set -euo pipefail
. "$(dirname "$0")/recipe.sh"

read_arguments "web math code $choice_sets" "$@"
mix_of_choices
mkdir -p "$out"
budget=(--tokens 128000 --seed 0)
for name in web code; do
  tokenize --sequence-tokens 2048 "${budget[@]}" --out "$out/$name.h5" "${flags[@]}" -- "${path_of[$name]}"
done
tokenize --sequence-tokens 512 --template '{question}\n{answer}' --loss-on answer "${budget[@]}" \
  --out "$out/math.h5" "${flags[@]}" -- "${path_of[math]}"
tokenize --task multiple_choice --sequence-tokens 512 "${budget[@]}" --out "$out/commonsense.h5" "${flags[@]}" "${mix[@]}"
