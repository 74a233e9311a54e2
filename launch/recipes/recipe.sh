# Shared by the recipes of this folder: source it, do not run it.
# shellcheck shell=bash

# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

declare -A path_of=()
flags=()

# read_some NAMES ARGUMENTS...: MODEL OUT NAME=PATH... [-- FLAG...] of a recipe into model, out, path_of and
# flags; at least one of NAMES has to be there.
read_some() {
  local names=$1 name
  shift
  case ${1-} in -h | --help)
    print_usage "$0"
    exit 0
    ;;
  esac
  if [ $# -lt 2 ]; then die "$code_usage" "MODEL and OUT are missing. Try $0 --help."; fi
  # shellcheck disable=SC2034  # used by the recipe
  model=$1 out=$2
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    name=${1%%=*}
    if [ "$name" = "$1" ] || ! [[ " $names " == *" $name "* ]]; then
      die "$code_usage" "'$1' is no input of this recipe (those are NAME=PATH with: $names). Try $0 --help."
    fi
    path_of[$name]=${1#*=}
    shift
  done
  if [ ${#path_of[@]} = 0 ]; then die "$code_usage" "${names%% *}=PATH is missing. Try $0 --help."; fi
  # shellcheck disable=SC2034  # used by the recipes
  flags=("${@:2}") # behind --
}

# read_arguments NAMES ARGUMENTS...: the same; every name of NAMES has to be there.
read_arguments() {
  local name
  read_some "$@"
  for name in $1; do
    if [ -z "${path_of[$name]-}" ]; then die "$code_usage" "$name=PATH is missing. Try $0 --help."; fi
  done
}

# tokenize ARGUMENTS...: those given later win.
tokenize() {
  if ! [ -x "$root/.venv/bin/python" ]; then die "$code_unsuitable" "no .venv in '$root'. Run launch/setup.sh."; fi
  "$root/.venv/bin/python" "$root/launch/tokenize.py" --tokenizer "$model" "$@"
}

# shellcheck disable=SC2034  # used by the recipes
choice_sets="boolq arc_easy arc_challenge hellaswag openbookqa winogrande piqa"

# mix_of_choices: every set of multiple choice with the same weight, each in its layout, into mix.
mix_of_choices() {
  local name
  mix=()
  for name in $choice_sets; do
    case $name in
      arc_*) mix+=("--mix=1,arc:${path_of[$name]}") ;;
      *) mix+=("--mix=1,$name:${path_of[$name]}") ;;
    esac
  done
}
