#!/usr/bin/env python3
"""The cheapest way to a given quality: time from the dense model to half of its decoder parameters, by espalier's recipes and by GISP's own
way (gisp_way.py: transformers and autograd, weight gradients on the masked model of full size), in turn on one machine.

  cheapest.py --espalier build/release/bin/espalier [--model DIR --texts NAME=FILE...] [--iterations 32] [--rows 32] [--seeds 3]

Both get the same calibration rows, the same target and protection, float32 and one thread, and are measured on the same held-out rows.
GISP's time counts its loop alone; espalier's is that of the whole process, from start to exit. Seconds are those of the processor, which
other work on the machine disturbs little; those on the clock stand beside them. A recipe counts when the geometric mean of its
perplexities is not above GISP's in any seed.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "launch/python"), str(HERE), str(ROOT / "tests/oracle")]

import h5py  # noqa: E402
import numpy  # noqa: E402

import gisp_way  # noqa: E402
import token_files  # noqa: E402
from espalier_reproduce import data  # noqa: E402
from espalier_reproduce.__main__ import model_of  # noqa: E402

# Steps and criterion are what matters; schedules that begin fast or slowly were a little worse than even steps.
RECIPES = {f"{criterion}, {n} step{'s' * (n > 1)}": ({"criterion": criterion}, {"iterations": n})
           for criterion, steps in (("taylor", (4, 8)), ("taylor_gate_sample", (1, 2, 3, 4, 6))) for n in steps}


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


class Bench:
    cut = ()  # how launch/tokenize.py makes rows of texts, if not by packing

    def __init__(self, a, folder):
        self.a, self.folder = a, pathlib.Path(folder)
        model, texts, _ = model_of(a)
        self.model = pathlib.Path(model).resolve()
        texts = [data.read(t) for t in texts]
        self.domains = [t.name for t in texts]
        self.vocabulary = json.loads((self.model / "config.json").read_text())["vocab_size"]
        for t in texts:
            for part, side, rows in (("calibration", t.calibration, None), ("heldout", t.heldout, a.heldout_rows)):
                data.write_rows(self.folder, self.model, t.name, part, side, a.window, rows, *self.cut)

    def draw(self, seed):
        """A file per domain with the rows that both ways get."""
        for d in self.domains:
            with h5py.File(self.folder / f"{d}.calibration.h5") as file:
                rows = file["tokens"][:]
            chosen = numpy.random.default_rng(seed).permutation(len(rows))[: self.a.rows]
            token_files.write(self.folder / f"{d}.drawn.h5", rows[chosen], self.vocabulary)

    def configuration(self, importance, prune, micro_batch_tokens):
        files = lambda part: [{"name": d, "tokens": f"{d}.{part}.h5"} for d in self.domains]  # noqa: E731
        return {"model": {"path": str(self.model), "dtype": "float32"}, "device": "cpu",
                "calibration": {"domains": files("drawn"), "micro_batch_tokens": micro_batch_tokens},
                "importance": {"normalization": "gisp", **importance},
                "prune": {"target": self.a.target, "measure": "parameters", **prune},
                "checkpoint": {"keep_last": 1, "keep_every": 0}}

    def call(self, *arguments):
        """Wall and processor seconds of a process of espalier."""
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run([self.a.espalier, "--quiet", *map(str, arguments)], capture_output=True, text=True)
        wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def espalier(self, seed, name, importance, prune):
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(self.configuration(importance, prune, self.a.micro_batch_tokens)))
        run = self.folder / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
        wall, processor = self.call("run", config, "--run-dir", run)
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        return {"wall": wall, "processor": processor, "removed": line["sparsity_parameters"], "perplexity": self.evaluate(run)}

    def evaluate(self, source):
        out = self.folder / "eval.json"
        out.unlink(missing_ok=True)
        rows = [{"name": d, "tokens": str(self.folder / f"{d}.heldout.h5")} for d in self.domains]
        self.call("eval", source, "--set", f"evaluation.perplexity={json.dumps(rows)}", "--out", out)
        return {d: p["perplexity"] for d, p in json.loads(out.read_text())["perplexity"].items()}

    def gisp(self):
        """GISP's way on the rows that were drawn, and the dense model's perplexities."""
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        model = transformers.AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        held_out = {d: gisp_way.read_rows(self.folder / f"{d}.heldout.h5") for d in self.domains}
        rows = torch.cat([gisp_way.read_rows(self.folder / f"{d}.drawn.h5") for d in self.domains])
        dense = {d: gisp_way.perplexity(model, held_out[d]) for d in self.domains}
        wall, processor = time.monotonic(), time.process_time()
        removed, _ = gisp_way.prune(model, rows, self.a.target, self.a.iterations, max(1, self.a.micro_batch_tokens // self.a.window),
                                    int(0.1 * model.config.num_hidden_layers), 1)
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        return dense, {"wall": wall, "processor": processor, "removed": removed,
                       "perplexity": {d: gisp_way.perplexity(model, held_out[d]) for d in self.domains}}


def table(results, domains):
    """A line for each way, means over seeds; `results`: {way: [of each seed]}. The first is GISP's."""
    first = next(iter(results.values()))
    lines = ["| way | " + " | ".join(domains) + " | geometric mean | removed, % | processor, s | of GISP's | clock, s | of GISP's |",
             "|---|" + "---|" * (len(domains) + 6)]
    for name, seeds in results.items():
        mean = lambda key: statistics.fmean(r[key] for r in seeds)  # noqa: E731
        of_first = lambda key: mean(key) / statistics.fmean(r[key] for r in first)  # noqa: E731
        cells = [f"{statistics.fmean(r['perplexity'][d] for r in seeds):.2f}" for d in domains]
        cells += [" ".join(f"{geometric_mean(r['perplexity'].values()):.2f}" for r in seeds), f"{100 * mean('removed'):.2f}"]
        cells += [f"{mean('processor'):.2f}", f"{of_first('processor'):.3f}", f"{mean('wall'):.2f}", f"{of_first('wall'):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cheapest(results):
    """The recipe with the least processor time of those that are nowhere worse than the first way; None: there is none."""
    names = iter(results)
    reference = [geometric_mean(r["perplexity"].values()) for r in results[next(names)]]
    good = [n for n in names if all(geometric_mean(r["perplexity"].values()) <= g for r, g in zip(results[n], reference))]
    return min(good, key=lambda n: statistics.fmean(r["processor"] for r in results[n]), default=None)


def tell(seed, name, found):
    print(f"seed {seed}, {name}: {geometric_mean(found['perplexity'].values()):.3f}, processor {found['processor']:.1f} s, clock "
          f"{found['wall']:.1f} s", file=sys.stderr, flush=True)


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--espalier", required=True)
    p.add_argument("--model")
    p.add_argument("--texts", nargs="+", metavar="NAME=FILE")
    p.add_argument("--target", type=float, default=0.5)
    p.add_argument("--iterations", type=int, default=32, help="of GISP's way")
    p.add_argument("--rows", type=int, default=32, help="per domain")
    p.add_argument("--heldout-rows", type=int, default=48, help="per domain")
    p.add_argument("--window", type=int, default=128)
    p.add_argument("--micro-batch-tokens", type=int, default=1024)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME")
    return p.parse_args()


def main():
    a = parse()
    a.espalier = os.path.abspath(a.espalier)
    with tempfile.TemporaryDirectory() as folder:
        bench, results = Bench(a, folder), {}
        for seed in range(a.seeds):
            bench.draw(seed)
            dense, found = bench.gisp()
            results.setdefault(f"GISP, {a.iterations} iterations", []).append(found)
            tell(seed, "GISP", found)
            for name in a.recipes:
                results.setdefault(f"espalier, {name}", []).append(bench.espalier(seed, name, *RECIPES[name]))
                tell(seed, name, results[f"espalier, {name}"][-1])
        config = bench.folder / "config.yaml"
        own = bench.evaluate(config)
    for d in bench.domains:
        if abs(own[d] / dense[d] - 1) > 1e-4:
            sys.exit(f"{d}: espalier measures {own[d]} on the dense model, transformers {dense[d]}")
    print(f"{bench.model.name}, {a.target:.0%} of the decoder parameters, {a.rows} rows of {a.window} tokens per domain, {a.seeds} seeds; dense "
          + ", ".join(f"{d} {own[d]:.2f}" for d in bench.domains) + f", geometric mean {geometric_mean(own.values()):.2f}.\n")
    print(table(results, bench.domains))
    best = cheapest(results)
    print(f"\nCheapest that is nowhere worse than GISP's way: {best or 'none'}.")


if __name__ == "__main__":
    main()
