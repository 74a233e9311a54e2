#!/usr/bin/env python3
"""What `espalier plan --bench` says of a pass and of a refit beside these themselves, for models of random weights.

  forecast.py --espalier build/release/bin/espalier [--shapes hidden=256,channels=704,layers=8,heads=8,kv_heads=4,head_dim=32,vocab=1024 ...]

A bench in both orders of execution; for each of them a plan, a run of one iteration, and that run resumed with a refit. A forecast in processor time is the one on the clock with each
rate as the bench has it by processor time; what was taken of it is that of the process less that of one that had nothing left to do. On an
idle machine look at the clock, on one that others use at the processor.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import workbench  # noqa: E402

SHAPES = (
    "hidden=256,channels=704,layers=8,heads=8,kv_heads=4,head_dim=32,vocab=1024",
    "hidden=512,channels=1536,layers=4,heads=8,kv_heads=8,head_dim=64,vocab=2048",
)
ORDERS = ("sample_major", "layer_major")


class Bench:
    def __init__(self, a, shape, folder):
        self.a, self.folder = a, pathlib.Path(folder)
        sizes = {key: int(value) for key, value in (part.split("=") for part in shape.split(","))}
        bench = workbench.Workbench(self.folder, family="llama", **sizes)
        for name, seed in (("order", 1), ("refit", 2)):
            workbench.write_tokens(self.folder / f"{name}.h5", rows=a.rows, length=a.length, vocab=sizes["vocab"], seed=seed)
        self.config = bench.config(
            "config", model={"path": "model", "dtype": "float32"}, importance={"criterion": a.criterion},
            calibration={"domains": [{"name": "order", "tokens": "order.h5"}], "micro_batch_tokens": a.micro_batch_tokens},
            prune={"target": a.target, "iterations": 1, "protect": {"first_layers": 0, "last_layers": 0}, "ranking": "local"},
            refit={"domains": [{"name": "refit", "tokens": "refit.h5"}]}, evaluation={"perplexity": []})

    def call(self, *arguments):
        """(standard output, processor seconds) of a process of espalier."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([self.a.espalier, *map(str, arguments)], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def measure(self):
        self.call("bench", self.config, "--criterion", self.a.criterion, "--order", ",".join(self.a.orders),
                  "--micro-batch-tokens", self.a.micro_batch_tokens, "--repeat", self.a.repeat, "--out", self.folder / "bench.json")

    def forecast(self, order):
        """{work: ({part: seconds on the clock}, {part: of the processor})}."""
        out = self.folder / "bench.json"
        time = json.loads(self.call("plan", self.config, "--bench", out, "--json", "--set", f"execution.order={order}",
                                    "--set", "refit.enabled=true")[0])["time"]
        bench = json.loads(out.read_text())
        (one,), rates = [one for one in bench["passes"] if one["order"] == order], bench["refit"]
        share = one["processor_seconds"] / one["seconds"]  # of the pass
        refit, solving = time["refit"], rates["solving_flops_per_processor_s"]
        score = {"passes": time["scoring_seconds"]}, {"passes": time["scoring_seconds"] * share}
        if self.a.criterion == "obs":
            score[0]["ordering"], score[1]["ordering"] = time["ordering_seconds"], time["first_ordering_flops"] / solving
        return {"score": score, "refit": (
            {part: refit[f"{part}_seconds"] for part in ("streams", "sums", "solving")},
            {"streams": refit["streams_seconds"] * share, "sums": refit["sums_flops"] / rates["sums_flops_per_processor_s"],
             "solving": refit["solving_flops"] / solving})}

    def work(self, order):
        """{work: (seconds on the clock, of the processor)} of the run."""
        run = self.folder / order
        _, score = self.call("--quiet", "run", self.config, "--run-dir", run, "--set", f"execution.order={order}")
        _, nothing = self.call("--quiet", "resume", run)
        _, refit = self.call("--quiet", "resume", run, "--set", "refit.enabled=true")
        clock = workbench.metrics_of(run)[-1]["seconds"]["calibrate"], json.loads((run / "refit.json").read_text())["seconds"]["refit"]
        return {"score": (clock[0], score - nothing), "refit": (clock[1], refit - nothing)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--espalier", required=True)
    p.add_argument("--shapes", nargs="+", default=SHAPES)
    p.add_argument("--criterion", default="taylor_gate")
    p.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    p.add_argument("--target", type=float, default=0.5)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--length", type=int, default=128)
    p.add_argument("--micro-batch-tokens", type=int, default=1024)
    p.add_argument("--repeat", type=int, default=3)
    a = p.parse_args()
    a.espalier = os.path.abspath(a.espalier)
    print(f"{a.criterion}, {a.rows} rows of {a.length} tokens in micro-batches of {a.micro_batch_tokens}, {a.target:.0%} of the units of every "
          f"layer removed, float32, {os.environ['OMP_NUM_THREADS']} thread.\n")
    print("| shape | order | work | seconds of the | forecast | sum | taken | ratio |\n|---|---|---|---|---|---|---|---|")
    for shape in a.shapes:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(a, shape, folder)
            bench.measure()
            for order in a.orders:
                forecast, work = bench.forecast(order), bench.work(order)
                for name, found in forecast.items():
                    for kind, parts, took in zip(("clock", "processor"), found, work[name], strict=True):
                        text, total = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()), sum(parts.values())
                        print(f"| {shape} | {order} | {name} | {kind} | {text} | {total:.2f} | {took:.2f} | {total / took:.2f} |", flush=True)


if __name__ == "__main__":
    main()
