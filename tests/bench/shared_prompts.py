#!/usr/bin/env python3
"""What computing an item's prompt once for all its options saves: scores of objective margin on sets of questions with
execution.share_prompts on and off, in turn.

  shared_prompts.py --espalier build/release/bin/espalier NAME=FILE.jsonl... [--items 48] [--rounds 3] [--layers 8]
                    [--micro-batch-tokens 2048] [--tokenizer DIR]

The model is a random Qwen2 (hidden 512, ffn 1408, 8/2 heads of 64). Prints for each set its options per item and tokens per row,
the share of tokens that is left, and seconds of the passes: medians, and their ratio.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import h5py

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/models"))
SHAPE = {"hidden": 512, "heads": 8, "kv_heads": 2, "head_dim": 64, "channels": 1408}
CRITERIA = ("taylor", "taylor_gate")


def tokens_left(path):
    """Tokens of packed rows over those of plain ones, without padding."""
    with h5py.File(path) as file:
        tokens, length, item, mask = (file[name][:] for name in ("tokens", "length", "item", "loss_mask"))
    packed = 0
    for one in dict.fromkeys(item):
        rows = [i for i, n in enumerate(item) if n == one]
        shared = min(int(mask[i].argmax()) - 1 for i in rows)
        while shared > 0 and any((tokens[i, :shared] != tokens[rows[0], :shared]).any() for i in rows):
            shared -= 1
        packed += shared + sum(int(length[i]) - shared for i in rows)
    items = len(set(item))
    return len(item) / items, length.mean(), packed / length.sum()


def tokenized(name, source, out, tokenizer, items):
    done = subprocess.run([sys.executable, ROOT / "launch/tokenize.py", "--task", "multiple_choice", "--sequence-tokens", "512", "--tokenizer",
                           tokenizer, "--out", out, "--quiet", source], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {done.stderr}")
    with h5py.File(out) as file:
        return min(items, len(set(file["item"][:])))


def seconds(program, model, tokens, items, criterion, shared, micro_batch_tokens, folder):
    config = folder / "score.yaml"
    config.write_text(json.dumps({
        "model": {"path": str(model), "dtype": "float32"}, "device": "cpu",
        "calibration": {"domains": [{"name": "items", "tokens": str(tokens), "objective": "margin", "sequences": items}],
                        "micro_batch_tokens": micro_batch_tokens},
        "importance": {"criterion": criterion}, "execution": {"share_prompts": shared}}))
    out = folder / "scores.h5"
    out.unlink(missing_ok=True)
    done = subprocess.run([program, "score", config, "--out", out], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
    if done.returncode != 0:
        sys.exit(done.stderr)
    return float(re.search(r"in ([0-9.]+) s \(", done.stdout + done.stderr).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--tokenizer", default=ROOT / "tests/models/tri-domain-qwen2")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE")
    a = parser.parse_args()
    from make_random import make

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        vocabulary = json.loads((pathlib.Path(a.tokenizer) / "config.json").read_text())["vocab_size"]
        make(folder / "model", "qwen2", seed=0, layers=a.layers, vocab=vocabulary, **SHAPE)
        print("| set | options | tokens a row | tokens left | criterion | each option, s | shared, s | ratio |\n|---|---|---|---|---|---|---|---|")
        for name, _, source in (one.partition("=") for one in a.sets):
            tokens = folder / f"{name}.h5"
            items = tokenized(name, source, tokens, a.tokenizer, a.items)
            options, length, left = tokens_left(tokens)
            for criterion in CRITERIA:
                found = {True: [], False: []}
                for _ in range(a.rounds):
                    for shared in found:
                        found[shared].append(seconds(a.espalier, folder / "model", tokens, items, criterion, shared,
                                                     a.micro_batch_tokens, folder))
                plain, shared = statistics.median(found[False]), statistics.median(found[True])
                print(f"| {name} | {options:.1f} | {length:.0f} | {left:.2f} | `{criterion}` | {plain:.2f} | {shared:.2f} | "
                      f"{shared / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
