#!/usr/bin/env python3
"""Prunes a trained model in several ways to the same number of parameters and compares held-out perplexities.

  compare_criteria.py --espalier build/release/bin/espalier                        # the committed three-domain model
  compare_criteria.py --espalier ... --model DIR --texts NAME=calibration.jsonl=heldout.jsonl ... --out docs/results.md

Prints a Markdown table: one row per way, perplexity per domain and their geometric mean, then the spread over seeds for random.

The baseline `random` is ranked as drawn (normalization none): every unit is as likely to fall as any other, so heads and channels
fall in proportion. Under param_mean the same numbers are divided by the units' sizes, and heads, which are larger, fall first:
that is shown beside it, since it is what a configuration that only changes the criterion gives, and is no fair baseline.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracle"))
import token_files  # noqa: E402

COMMITTED = HERE.parent / "models" / "tri-domain-qwen2"
WINDOW = 128
RANDOM_SEEDS = range(5)



def random_way(seed, normalization):
    return {"importance": {"criterion": "random", "normalization": normalization}, "prune": {"iterations": 1}, "calibration": {"seed": seed}}


# name: what differs from the baseline (taylor, param_mean, query heads, iterative)
MAIN = {
    "taylor, iterative": {},
    "taylor, one-shot": {"prune": {"iterations": 1}},
    "taylor_gate, iterative": {"importance": {"criterion": "taylor_gate"}},
    "taylor_gate_sample, iterative": {"importance": {"criterion": "taylor_gate_sample"}},
    "magnitude": {"importance": {"criterion": "magnitude"}, "prune": {"iterations": 1}},
    **{f"random, seed {s}": random_way(s, "none") for s in RANDOM_SEEDS},
}
HEADS_FIRST = {f"random / size, seed {s}": random_way(s, "param_mean") for s in RANDOM_SEEDS}
NORMALIZATIONS = {f"taylor, iterative, {n}": {"importance": {"normalization": n}}
                  for n in ("gisp", "block_mean", "block_l2", "block_standardize", "none")}
UNITS = {"taylor, iterative, kv_group": {"prune": {"attention_unit": "kv_group"}},
         "taylor, iterative, local": {"prune": {"ranking": "local"}}}


class Bench:
    def __init__(self, espalier, model, texts, scratch, target, iterations, rows, heldout_rows):
        self.espalier, self.model, self.scratch = espalier, pathlib.Path(model), pathlib.Path(scratch)
        self.target, self.iterations = target, iterations
        vocabulary = json.loads((self.model / "config.json").read_text())["vocab_size"]
        self.domains = list(texts)
        for name, (calibration, heldout) in texts.items():
            token_files.from_text(self.path(name, "calibration"), self.model, calibration, rows, WINDOW, vocabulary)
            token_files.from_text(self.path(name, "heldout"), self.model, heldout, heldout_rows, WINDOW, vocabulary)

    def path(self, domain, part):
        return self.scratch / f"{domain}.{part}.h5"

    def prune(self, name, changes):
        """Runs one way; returns {"perplexity": {domain: x}, "dense": {...}, "parameters": n, ...}."""
        config = {
            "model": {"path": str(self.model), "dtype": "float32"},
            "device": "cpu",
            "calibration": {"domains": [{"name": d, "tokens": str(self.path(d, "calibration"))} for d in self.domains],
                            "micro_batch_tokens": 2048, "seed": 0},
            "importance": {"criterion": "taylor", "normalization": "param_mean"},
            "prune": {"target": self.target, "measure": "parameters", "iterations": self.iterations},
            "evaluation": {"every": 1000, "perplexity": [{"name": d, "tokens": str(self.path(d, "heldout"))} for d in self.domains]},
            "checkpoint": {"keep_last": 1, "keep_every": 0},
        }
        for section, values in changes.items():
            config[section].update(values)
        slug = "".join(c if c.isalnum() else "-" for c in name)
        file = self.scratch / f"{slug}.yaml"
        file.write_text(json.dumps(config))
        run = self.scratch / slug
        done = subprocess.run([self.espalier, "--quiet", "run", str(file), "--run-dir", str(run)], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
        if done.returncode != 0:
            raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {"dense": rows[0]["perplexity"], "perplexity": rows[-1]["perplexity"], "parameters": rows[-1]["parameters"],
                "dense_parameters": rows[0]["parameters"], "heads": rows[-1]["heads_kept"], "channels": rows[-1]["channels_kept"]}


def geometric_mean(perplexity):
    return math.exp(statistics.fmean(math.log(x) for x in perplexity.values()))


def over_seeds(results, prefix):
    """Geometric means of the rows of one kind of random, one per seed, ascending."""
    return sorted(geometric_mean(r["perplexity"]) for name, r in results.items() if name.startswith(prefix + ", seed"))


def ordering(results):
    """(iterative, one-shot, best of magnitude and the median of random): geometric means, in the order they should have."""
    random = statistics.median(over_seeds(results, "random"))
    means = [geometric_mean(results[n]["perplexity"]) for n in ("taylor, iterative", "taylor, one-shot", "magnitude")]
    return means[0], means[1], min(means[2], random)


def table(results, domains):
    lines = ["| way | " + " | ".join(domains) + " | geometric mean | parameters | heads | channels |",
             "|---|" + "---|" * (len(domains) + 4)]

    def line(name, perplexity, rest):
        cells = [f"{perplexity[d]:.3f}" for d in domains] + [f"{geometric_mean(perplexity):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells + rest) + " |")

    first = next(iter(results.values()))
    line("dense", first["dense"], [str(first["dense_parameters"]), "", ""])
    for name, r in results.items():
        line(name, r["perplexity"], [str(r["parameters"]), str(r["heads"]), str(r["channels"])])
    for prefix in ("random", "random / size"):
        if seeds := over_seeds(results, prefix):
            lines.append(f"\n{prefix}, over {len(seeds)} seeds: median {statistics.median(seeds):.3f}, from {seeds[0]:.3f} to {seeds[-1]:.3f}.")
    return "\n".join(lines)


def committed_texts():
    return {d: (COMMITTED / "text" / f"{d}.calibration.jsonl", COMMITTED / "text" / f"{d}.heldout.jsonl")
            for d in ("prose", "math", "code")}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--model", default=COMMITTED)
    parser.add_argument("--texts", nargs="+", help="NAME=CALIBRATION=HELDOUT, jsonl files with a field text")
    parser.add_argument("--target", type=float, default=0.35, help="share of decoder parameters to remove")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rows", type=int, default=64, help="calibration rows per domain")
    parser.add_argument("--heldout-rows", type=int, default=96)
    return parser.parse_args()


def main():
    a = parse()
    texts = committed_texts()
    if a.texts:
        texts = {name: (calibration, heldout) for name, calibration, heldout in (t.split("=") for t in a.texts)}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(os.path.abspath(a.espalier), a.model, texts, scratch, a.target, a.iterations, a.rows, a.heldout_rows)
        results = {}
        for name, changes in {**MAIN, **HEADS_FIRST, **NORMALIZATIONS, **UNITS}.items():
            results[name] = bench.prune(name, changes)
            print(f"{name}: {geometric_mean(results[name]['perplexity']):.3f}", file=sys.stderr, flush=True)
    print(f"Model {pathlib.Path(a.model).name}; {a.target:.0%} of the decoder parameters removed in {a.iterations} iterations (one-shot: 1); "
          f"{a.rows} calibration and {a.heldout_rows} held-out rows of {WINDOW} tokens per domain; {platform.processor() or platform.machine()}.\n")
    print(table(results, bench.domains))
    iterative, one_shot, naive = ordering(results)
    print(f"\niterative {iterative:.3f} <= one-shot {one_shot:.3f} < min(magnitude, median random) {naive:.3f}: "
          f"{'holds' if iterative <= one_shot < naive else 'DOES NOT HOLD'}")


if __name__ == "__main__":
    main()
