#!/usr/bin/env python3
"""The memory that a run forecasts beside what it took, and what `espalier plan` says before, for models of random weights.

  memory.py --espalier build/release/bin/espalier [--shapes hidden=2048,channels=5632,layers=8,heads=32,kv_heads=4,head_dim=64,vocab=32000,dtype=float32 ...]

One iteration for each shape, criterion, order of execution and `execution.recompute`; layer by layer nothing is kept, so there `all` is left out.
The peak is the largest resident memory of the whole run, from its start to its last file. The default shapes hold 1.7 to 2.7 GB of weights.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("ESPALIER_TEST_CACHE", None)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import workbench  # noqa: E402

SHAPES = (
    "hidden=2048,channels=5632,layers=8,heads=32,kv_heads=4,head_dim=64,vocab=32000,dtype=float32",
    "hidden=1536,channels=8960,layers=10,heads=12,kv_heads=2,head_dim=128,vocab=120000,dtype=bfloat16",
    "hidden=4096,channels=11008,layers=2,heads=32,kv_heads=32,head_dim=128,vocab=32000,dtype=float32",
)
ORDERS = {"sample_major": ("all", "auto"), "layer_major": ("auto",)}
END = re.compile(r"memory +([\d.]+) GiB a rank forecast, peak ([\d.]+) GiB")


class Bench:
    def __init__(self, a, shape, folder):
        self.a, self.folder = a, pathlib.Path(folder)
        values = dict(part.split("=") for part in shape.split(","))
        self.dtype = values.pop("dtype")
        sizes = {key: int(value) for key, value in values.items()}
        self.bench = workbench.Workbench(self.folder, family="llama", **sizes)
        workbench.write_tokens(self.folder / "rows.h5", rows=a.rows, length=a.length, vocab=sizes["vocab"], seed=1)

    def config(self, criterion, order, recompute):
        return self.bench.config(
            f"{criterion}-{order}-{recompute}", model={"path": "model", "dtype": self.dtype}, importance={"criterion": criterion},
            calibration={"domains": [{"name": "rows", "tokens": "rows.h5"}], "micro_batch_tokens": self.a.micro_batch_tokens},
            prune={"target": self.a.target, "iterations": 1}, evaluation={"perplexity": []},
            execution={"order": order, "boundaries": "memory", "recompute": recompute})

    def call(self, *arguments):
        done = subprocess.run([self.a.espalier, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return done.stdout + done.stderr

    def compare(self, criterion, order, recompute):
        """GiB: of plan, of the run before it began, and the most that it took."""
        config = self.config(criterion, order, recompute)
        plan = json.loads(self.call("plan", config, "--json"))["expected_bytes"] / 2**30
        run = self.folder / "run"
        forecast, peak = END.search(self.call("run", config, "--run-dir", run)).groups()
        subprocess.run(["rm", "-r", run], check=True)
        return plan, float(forecast), float(peak)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--espalier", required=True)
    p.add_argument("--shapes", nargs="+", default=SHAPES)
    p.add_argument("--criteria", nargs="+", default=("taylor", "taylor_gate"))
    p.add_argument("--orders", nargs="+", choices=ORDERS, default=tuple(ORDERS))
    p.add_argument("--target", type=float, default=0.2)
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--micro-batch-tokens", type=int, default=512)
    a = p.parse_args()
    a.espalier = os.path.abspath(a.espalier)
    print(f"{a.rows} rows of {a.length} tokens in micro-batches of {a.micro_batch_tokens}, {os.environ['OMP_NUM_THREADS']} thread. GiB:\n")
    print("| shape | criterion | order | recompute | plan | forecast | peak | forecast / peak |\n|---|---|---|---|---|---|---|---|")
    for shape in a.shapes:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(a, shape, folder)
            for criterion in a.criteria:
                for order in a.orders:
                    for recompute in ORDERS[order]:
                        plan, forecast, peak = bench.compare(criterion, order, recompute)
                        print(f"| {shape} | {criterion} | {order} | {recompute} | {plan:.2f} | {forecast:.2f} | {peak:.2f} | {forecast / peak:.2f} |",
                              flush=True)


if __name__ == "__main__":
    main()
