#!/usr/bin/env python3
"""What the refit gives back: perplexities of half a model with and without it, over the number of rows that it is fitted on.

  refit.py --espalier build/release/bin/espalier [--model DIR --texts NAME=FILE...] [--ways taylor:40 taylor:4 obs:1] [--refit-rows 1 2 8 32]

A way is a criterion and its number of steps, with no protected layer, once for each seed; every refit is one of the same run, resumed with
other settings. obs:1:0.1 is obs with that importance.damping. With --mixes prose+math math both order and refit see these domains alone;
all are measured. With --documents rows begin as a model that was trained on single documents saw them; with --windows a text is one stream of
windows, its documents in their order and each with an end token behind it, of which the first are held out and the rest drawn from.
Rows are per domain; the perplexities are those of refit.json, on held-out rows. What was solved is stored in the model's own type; --unrounded does all of it a
second time on a copy of the model that is stored in float32, with the same values, and says what rounding costs. Processor seconds are
those of the process less what its evaluations took on the clock: compare them on an idle machine.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
import statistics
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import h5py  # noqa: E402
import numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402

import cheapest  # noqa: E402
import token_files  # noqa: E402
from espalier_reproduce import data  # noqa: E402


def widened(model, path):
    """A copy of a model directory with the same weights, stored in float32."""
    shutil.copytree(model, path)
    for file in path.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        safetensors.torch.save_file({name: t.float() for name, t in tensors.items()}, file, {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config.update({key: "float32" for key in ("dtype", "torch_dtype") if key in config})
    (path / "config.json").write_text(json.dumps(config))
    return path


UNROUNDED = ", not rounded"


@dataclasses.dataclass(frozen=True)
class Way:
    criterion: str
    steps: int
    damping: float = None

    def __str__(self):
        damping = "" if self.damping is None else f", damping {self.damping:g}"
        return f"`{self.criterion}`, {self.steps} step{'s' * (self.steps > 1)}{damping}"


def way_of(text):
    criterion, steps, *damping = text.split(":")
    return Way(criterion, int(steps), *map(float, damping))


class Bench(cheapest.Bench):
    def __init__(self, a, folder):
        # Documents shorter than a row are left out: files have no lengths here.
        self.cut = ("--no-pack", "--overlong", "truncate") if a.documents else ()
        super().__init__(a, folder)
        self.mixes = [m.split("+") for m in a.mixes] or [self.domains]
        unknown = {d for mix in self.mixes for d in mix} - set(self.domains)
        if unknown:
            sys.exit(f"--mixes {' '.join(sorted(unknown))} (the domains are {' '.join(self.domains)})")
        if a.documents:
            self.drop_short_rows()
        if a.windows:
            self.cut_windows(a.texts)
        self.models = {"": self.model}
        if a.unrounded:
            self.models[UNROUNDED] = widened(self.model, self.folder / "float32")

    def drop_short_rows(self):
        for path in self.folder.glob("*.h5"):
            with h5py.File(path) as file:
                rows = file["tokens"][:]
                whole = file["length"][:] == rows.shape[1] if "length" in file else numpy.full(len(rows), True)
            token_files.write(path, rows[whole], self.vocabulary)

    def cut_windows(self, texts):
        tokenizer = tokenizers.Tokenizer.from_file(str(self.model / "tokenizer.json"))
        end = tokenizer.token_to_id(json.loads((self.model / "tokenizer_config.json").read_text())["eos_token"])
        for name, file in (text.split("=") for text in texts):
            ids = [i for text in data.documents(file) for i in (*tokenizer.encode(text, add_special_tokens=False).ids, end)]
            rows = numpy.array(ids[: len(ids) // self.a.window * self.a.window]).reshape(-1, self.a.window)
            for part, cut in (("heldout", rows[: self.a.heldout_rows]), ("calibration", rows[self.a.heldout_rows :])):
                token_files.write(self.folder / f"{name}.{part}.h5", cut, self.vocabulary)

    def draw(self, seed):
        """A file per domain in the order of the seed: the scores take its first rows, the refit those behind them."""
        for d in self.domains:
            with h5py.File(self.folder / f"{d}.calibration.h5") as file:
                rows = file["tokens"][:]
            order = numpy.random.default_rng(seed).permutation(len(rows))
            scores, others = order[: self.a.rows], order[self.a.rows :]
            token_files.write(self.folder / f"{d}.drawn.h5", rows[scores], self.vocabulary)
            token_files.write(self.folder / f"{d}.refit.h5", rows[others], self.vocabulary)

    def order(self, seed, way, mix, stored=""):
        """Of a model that is calibrated on the domains of `mix`."""
        config = self.folder / "config.yaml"
        prune = {"iterations": way.steps, "protect": {"first_layers": 0, "last_layers": 0}}
        importance = {"criterion": way.criterion, "normalization": "cost" if way.criterion == "obs" else "gisp"}
        if way.damping is not None:
            importance["damping"] = way.damping
        value = self.configuration(importance, prune, self.a.micro_batch_tokens)
        value["model"]["path"] = str(self.models[stored])
        files = lambda part, domains: [{"name": d, "tokens": f"{d}.{part}.h5"} for d in domains]  # noqa: E731
        value["calibration"]["domains"] = files("drawn", mix)
        value["evaluation"] = {"every": 1000, "perplexity": files("heldout", self.domains)}
        value["refit"] = {"domains": files("refit", mix)}
        config.write_text(json.dumps(value))
        run = self.folder / f"run-{way.criterion}-{way.steps}-{way.damping}-{'+'.join(mix)}-{seed}{'-unrounded' * bool(stored)}"
        _, seconds = self.call("run", config, "--run-dir", run)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        evaluated = [row["seconds"].get("evaluate", 0) for row in rows]
        return run, {"dense": rows[0]["perplexity"], "perplexity": rows[-1]["perplexity"], "evaluate": evaluated[-1],
                     "processor": seconds - sum(evaluated), "export": self.export(run, "--no-refit")}

    def export(self, run, *options):
        """Processor seconds of writing the model."""
        out = self.folder / "export"
        _, seconds = self.call("export", run, "--out", out, *options)
        shutil.rmtree(out)
        return seconds

    def refit(self, run, found, rows, shrink_to, matrices):
        _, seconds = self.call("resume", run, "--set", "refit.enabled=true", "--set", f"refit.sequences={rows}",
                               "--set", f"refit.shrink_to={shrink_to}", "--set", f"refit.matrices={matrices}")
        record = json.loads((run / "refit.json").read_text())
        each = [m for half in record["halves"] for m in (half, *half.get("projections", {}).values())]
        widths = [m["tokens_per_width"] for m in each if m["outcome"] != "empty"]
        return {"perplexity": record["perplexity"], "tokens": record["tokens"], "matrices": record["matrices"],
                "per_width": (min(widths), max(widths)), "processor": seconds - found["evaluate"], "export": self.export(run)}


def line(name, seeds, domains):
    mean = lambda key: statistics.fmean(r[key] for r in seeds)  # noqa: E731
    cells = [f"{statistics.fmean(r['perplexity'][d] for r in seeds):.2f}" for d in domains]
    cells.append(" ".join(f"{cheapest.geometric_mean(r['perplexity'].values()):.2f}" for r in seeds))
    if "per_width" in seeds[0]:
        least, most = zip(*(r["per_width"] for r in seeds))
        kept = " ".join(str(r["matrices"]["dense"] + r["matrices"]["obs"]) for r in seeds)
        cells += [f"{mean('tokens'):.0f}", f"{min(least):.1f} to {max(most):.0f}", kept]
    else:
        cells += ["", "", ""]
    return f"| {name} | " + " | ".join(cells) + f" | {mean('processor'):.1f} | {mean('export'):.1f} |"


def rounding_text(results):
    """What storing the refitted matrices in the model's own type costs, a line for each refit."""
    lines = []
    for name, seeds in results.items():
        others = results.get(name + UNROUNDED, [])
        if "per_width" in seeds[0] and others:
            both = zip(seeds, others, strict=True)
            means = [[cheapest.geometric_mean(r["perplexity"].values()) for r in pair] for pair in both]
            lines.append(f"{name}: geometric mean " + ", ".join(
                f"{rounded:.4f} against {exact:.4f} not rounded ({100 * (rounded / exact - 1):+.3f} %)" for rounded, exact in means))
    return "\n".join(lines)


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--espalier", required=True)
    p.add_argument("--model")
    p.add_argument("--texts", nargs="+", metavar="NAME=FILE")
    p.add_argument("--target", type=float, default=0.5)
    p.add_argument("--ways", nargs="+", type=way_of, default=[Way("taylor", 4), Way("obs", 1)],
                   metavar="CRITERION:STEPS[:DAMPING]")
    p.add_argument("--mixes", nargs="+", default=[], metavar="NAME+NAME", help="domains that are calibrated on (default: all)")
    p.add_argument("--rows", type=int, default=8, help="of the scores, per domain")
    p.add_argument("--refit-rows", type=int, nargs="+", default=[1, 2, 8, 32], help="per domain")
    p.add_argument("--shrink-to", nargs="+", default=["dense"], choices=("dense", "obs"))
    p.add_argument("--matrices", nargs="+", default=["outputs"], choices=("outputs", "all", "auto"))
    p.add_argument("--heldout-rows", type=int, default=48, help="per domain")
    p.add_argument("--window", type=int, default=256)
    p.add_argument("--micro-batch-tokens", type=int, default=2048)
    p.add_argument("--documents", action="store_true", help="a row is the begin of a document, not a cut of packed ones")
    p.add_argument("--windows", action="store_true", help="with --texts NAME=FILE: the first windows of a text are held out")
    p.add_argument("--unrounded", action="store_true", help="also with the refitted matrices stored in float32")
    p.add_argument("--seeds", type=int, default=2)
    a = p.parse_args()
    if a.windows and (a.documents or not a.texts or any(text.count("=") != 1 for text in a.texts)):
        p.error("--windows needs --texts NAME=FILE, and excludes --documents")
    return a


def main():
    a = parse()
    a.espalier = os.path.abspath(a.espalier)
    with tempfile.TemporaryDirectory() as folder:
        bench, results = Bench(a, folder), {}
        for seed in range(a.seeds):
            bench.draw(seed)
            for mix, way, stored in itertools.product(bench.mixes, a.ways, bench.models):
                run, found = bench.order(seed, way, mix, stored)
                dense, title = found["dense"], f"{way}" + f", {' '.join(mix)}" * bool(a.mixes)
                results.setdefault(title + stored, []).append(found)
                for shrink_to, rows, matrices in itertools.product(a.shrink_to, a.refit_rows, a.matrices):
                    name = f"{title}, refit on {len(mix) * rows} x {a.window}" + " towards OBS" * (shrink_to == "obs")
                    name += ", all matrices" * (matrices == "all") + stored
                    results.setdefault(name, []).append(bench.refit(run, found, rows, shrink_to, matrices))
                    print(f"seed {seed}, {name}: {cheapest.geometric_mean(results[name][-1]['perplexity'].values()):.3f}", file=sys.stderr,
                          flush=True)
    mean = math.exp(statistics.fmean(math.log(v) for v in dense.values()))
    print(f"{bench.model.name}, {a.target:.0%} of the decoder parameters, {a.rows} rows of {a.window} tokens per domain for the order, "
          f"{a.seeds} seeds; dense " + ", ".join(f"{d} {v:.2f}" for d, v in dense.items()) + f", geometric mean {mean:.2f}.\n")
    print("| way | " + " | ".join(bench.domains) + " | geometric mean | tokens | for each input | matrices kept | processor, s | its export, s |")
    print("|---|" + "---|" * (len(bench.domains) + 6))
    for name, seeds in results.items():
        print(line(name, seeds, bench.domains))
    if a.unrounded:
        print(f"\n{rounding_text(results)}")


if __name__ == "__main__":
    main()
