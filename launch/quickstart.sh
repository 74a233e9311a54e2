#!/usr/bin/env bash
# launch/quickstart.sh
#
# Sets up, builds, and prunes a small trained model to half of its decoder parameters on two ranks, in a
# minute or two once everything is built: in ten steps as GISP does, and in one pass with a refit. Each call
# works in a new directory, runs/quickstart-DATE-TIME, and removes the exports of earlier calls (not their
# logs and metrics). configs/quickstart.yaml and configs/quickstart-obs.yaml say what is done.
#
# Exit codes: 0 pruned and exported, 64 wrong usage, otherwise that of the step that failed.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

case ${1-} in
  -h | --help)
    print_usage "$0"
    exit 0
    ;;
  "") ;;
  *) die "$code_usage" "unknown argument '$1'. Try launch/quickstart.sh --help." ;;
esac

begin=$SECONDS
model=tests/models/tri-domain-qwen2
python=.venv/bin/python

launch/setup.sh
launch/build.sh release
espalier=build/release/bin/espalier

# tokens DOMAIN PART ROWS: one token file from the text beside the model.
tokens() {
  "$python" launch/tokenize.py --tokenizer "$model" --sequence-tokens 128 --max-sequences "$3" --force --quiet \
    --out "quickstart/$1.$2.h5" "$model/text/$1.$2.jsonl"
}
write_token_files() {
  mkdir -p quickstart
  local domain
  for domain in prose math code; do
    tokens "$domain" calibration 256
    tokens "$domain" heldout 64
  done
}
step "token files in quickstart/" write_token_files

for old in runs/quickstart-*/*/export; do
  if [ -d "$old" ]; then rm -rf "$old"; fi
done
stamp=$(date +%Y%m%d-%H%M%S)
run=runs/quickstart-$stamp
for ((n = 2; ; n++)); do
  if ! [ -e "$run" ]; then break; fi
  run=runs/quickstart-$stamp-$n
done

# mpirun counts cores, not hardware threads.
cores=$(lscpu --parse=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)
options=()
if [ "$cores" -lt 2 ] || [ "$(cores_here)" -lt 2 ]; then options=(--oversubscribe); fi
export OMP_NUM_THREADS=1
# prune WAY CONFIG: into $run/WAY; its seconds are in $pruned.
prune() {
  local command=(mpirun -n 2 "${options[@]}" "$espalier" run "$2" --run-dir "$run/$1" --tensor 2)
  echo
  echo "${command[*]}"
  local start=$SECONDS
  "${command[@]}"
  pruned=$((SECONDS - start))
}
mkdir -p "$run"
prune gisp configs/quickstart.yaml
gisp_seconds=$pruned
prune obs configs/quickstart-obs.yaml
obs_seconds=$pruned

export_dir=$run/obs/export/exact
"$espalier" verify "$export_dir" --deep

# What a user's own script would do; needs all of torch and transformers, which pruning does not.
open_with_transformers() {
  "$python" - "$export_dir" <<'PY'
import sys

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = tokenizer("The", return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
print(f"opened by transformers {transformers.__version__}: {type(model).__name__},", end=" ")
print(f"{model.num_parameters():,} parameters; it continues:")
print("  " + tokenizer.decode(out[0], skip_special_tokens=True).replace("\n", "\n  "))
PY
}
echo
start=$SECONDS
if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformers") is None)'; then
  open_with_transformers
  echo "opened with transformers: $(seconds_since "$start") s"
else
  echo "transformers is not in .venv, so the export was not opened with it. launch/setup.sh --tests installs it; then:"
  echo "  $python -c 'from transformers import AutoModelForCausalLM as M; print(M.from_pretrained(\"$export_dir\", trust_remote_code=True))'"
fi

# Both ways beside the dense model, on held-out text.
compare() {
  "$python" - "$run" "$gisp_seconds" "$obs_seconds" <<'PY'
import json
import pathlib
import sys

run, seconds = pathlib.Path(sys.argv[1]), sys.argv[2:]
rows = {way: [json.loads(line) for line in (run / way / "metrics.jsonl").read_text().splitlines()] for way in ("gisp", "obs")}
after = [rows["gisp"][-1]["perplexity"], json.loads((run / "obs/refit.json").read_text())["perplexity"]]
print(f"{'':26}{'dense':>10}{'GISP, 10 steps':>18}{'one pass and a refit':>24}")
print(f"{'decoder parameters gone':26}{'':>10}" + "".join(
    f"{rows[way][-1]['sparsity_parameters']:>{width}.1%}" for way, width in (("gisp", 18), ("obs", 24))))
for domain, dense in rows["gisp"][0]["perplexity"].items():
    print(f"{'perplexity ' + domain:26}{dense:>10.3f}{after[0][domain]:>18.3f}{after[1][domain]:>24.3f}")
print(f"{'seconds, all of it':26}{'':>10}{seconds[0]:>18}{seconds[1]:>24}")
PY
}
report=$("$python" launch/report.py "$run/gisp")
echo
compare
echo
echo "report: $report (open it in a browser)"
echo "everything in $(seconds_since "$begin") s. Results: $run (status: $espalier status $run/obs)"
