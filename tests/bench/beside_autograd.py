#!/usr/bin/env python3
"""Scoring passes of `espalier bench` beside transformers + autograd on the same shapes, criteria and tokens, in turn.

  beside_autograd.py --espalier build/release/bin/espalier [--cases wide wide-bfloat16 deep ranks half] [--rounds 3] [--out FILE]

wide: hidden 1024, ffn 2816, 8 layers, 16/4 heads, vocabulary 8,192. deep: hidden 256, ffn 704, 32 layers, 8/2 heads. ranks: two ranks with a
thread each beside one with two, on wide. half: wide with half of its decoder parameters removed, beside all of it. Micro-batches are of 1,024
tokens on both sides; a pass of either comes after one that does not count. Ratios are of the medians over the rounds; nothing is asserted.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "oracle"), str(HERE.parent / "models")]
import token_files  # noqa: E402

AT_ONCE = 1024
WIDE = {"hidden": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "channels": 2816, "vocab": 8192, "layers": 8}
DEEP = {"hidden": 256, "heads": 8, "kv_heads": 2, "head_dim": 32, "channels": 704, "vocab": 8192, "layers": 32}
# name: (shape, rows, window, dtype, criteria)
CASES = {
    "wide": (WIDE, 16, 256, "float32", ("taylor", "taylor_gate", "taylor_gate_sample")),
    "wide-bfloat16": (WIDE, 16, 256, "bfloat16", ("taylor", "taylor_gate")),
    "deep": (DEEP, 32, 128, "float32", ("taylor", "taylor_gate")),
}

# What the same layers' scores take in transformers: gradients of every weight that a unit owns, or of what enters o_proj and down_proj.
BASELINE = """
import json, sys, time, torch, h5py, transformers
transformers.logging.set_verbosity_error()
path, tokens, dtype, gates, at_once = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), sys.argv[4] == "taylor_gate", int(sys.argv[5])
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
tokens = torch.tensor(h5py.File(tokens)["tokens"][:], dtype=torch.long)
for p in model.parameters(): p.requires_grad_(False)
kept = []
def keep(_, inputs):
    if not inputs[0].requires_grad:
        inputs[0].requires_grad_(True)
    inputs[0].retain_grad()
    kept.append(inputs[0])
for layer in model.model.layers:
    attention, mlp = layer.self_attn, layer.mlp
    if gates:
        for m in (attention.o_proj, mlp.down_proj):
            m.register_forward_pre_hook(keep)
    else:
        for m in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            m.weight.requires_grad_(True)
rows = at_once // tokens.shape[1]
def one(batch):
    out = model(batch).logits.float()
    loss = torch.nn.functional.cross_entropy(out[:, :-1].reshape(-1, out.shape[-1]), batch[:, 1:].reshape(-1))
    (loss * len(batch) / len(tokens)).backward()
    if gates:
        sums = [(h * h.grad).sum((0, 1)) for h in kept]
        kept.clear()
one(tokens[:rows])
model.zero_grad()
begin, processor = time.time(), time.process_time()
for i in range(0, len(tokens), rows):
    one(tokens[i:i + rows])
if not gates:
    scores = [(p * p.grad).abs().sum(1) for p in model.parameters() if p.grad is not None]
print(json.dumps({"seconds": time.time() - begin, "processor": time.process_time() - processor}))
"""


def environment(threads):
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def output_of(command, threads=1):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment(threads))
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


class Side:
    """Seconds of each round by name, on the clock and of the processor."""

    def __init__(self):
        self.rounds = {}

    def add(self, name, seconds, processor):
        self.rounds.setdefault(name, []).append((seconds, processor))

    def median(self, name, which=0):
        return statistics.median(one[which] for one in self.rounds[name])

    def ratio(self, over, under):
        """Of the medians, and in processor time."""
        return tuple(self.median(over, which) / self.median(under, which) for which in (0, 1))


class Bench:
    def __init__(self, a, work):
        self.a, self.work, self.espalier, self.results = a, work, os.path.abspath(a.espalier), {}

    def model(self, name, shape):
        path = self.work / name
        if not path.exists():
            from make_random import make

            make(path, "qwen2", seed=0, **shape)
        return path

    def config(self, model, tokens, dtype, **prune):
        path = self.work / "config.yaml"
        path.write_text(json.dumps({
            "model": {"path": str(model), "dtype": dtype}, "device": "cpu", "execution": {"order": "sample_major"},
            "calibration": {"domains": [{"name": "random", "tokens": str(tokens)}], "micro_batch_tokens": AT_ONCE},
            "importance": {"criterion": "magnitude"},
            "prune": {"target": 0.5, "measure": "parameters", "protect": {"first_layers": 0, "last_layers": 0}, **prune}}))
        return path

    def passes(self, config, rows, window, criteria, ranks=1, threads=1, options=()):
        out = self.work / "bench.json"
        out.unlink(missing_ok=True)
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks] if ranks > 1 else []
        output_of([*launcher, self.espalier, "--quiet", "bench", config, "--tensor", ranks, "--sequences", rows, "--sequence-tokens", window,
                   "--micro-batch-tokens", AT_ONCE, "--criterion", ",".join(criteria), "--repeat", 1, "--out", out, *options], threads)
        return json.loads(out.read_text())["passes"]

    def beside(self, case):
        shape, rows, window, dtype, criteria = CASES[case]
        model, tokens, side = self.model(case.split("-")[0], shape), self.work / f"{case}.h5", Side()
        token_files.random_plain(tokens, rows, window, shape["vocab"], 0)
        fractions = {}
        for _ in range(self.a.rounds):
            for one in self.passes(self.config(model, tokens, dtype), rows, window, criteria):
                side.add(one["criterion"], one["seconds"], one["processor_seconds"])
                fractions.setdefault(one["criterion"], []).append(one["gemm_fraction"])
            for kind in ("taylor", "taylor_gate"):
                told = json.loads(output_of([sys.executable, "-c", BASELINE, model, tokens, dtype, kind, AT_ONCE]).splitlines()[-1])
                side.add(f"autograd {kind}", told["seconds"], told["processor"])
        for criterion in criteria:
            name = "taylor_gate" if criterion == "taylor_gate" else "taylor"
            clock, processor = side.ratio(f"autograd {name}", criterion)
            self.tell(case, f"{criterion} over autograd {name}", clock, processor,
                      f"{rows * window / side.median(criterion):.0f} tokens/s, {statistics.median(fractions[criterion]):.3f} of the products")

    def ranks(self):
        shape, rows, window, dtype, _ = CASES["wide"]
        model, tokens, side = self.model("wide", shape), self.work / "wide.h5", Side()
        token_files.random_plain(tokens, rows, window, shape["vocab"], 0)
        for _ in range(self.a.rounds):
            for name, ranks, threads in (("threads", 1, 2), ("ranks", 2, 1)):
                (one,) = self.passes(self.config(model, tokens, dtype), rows, window, ["taylor"], ranks, threads)
                side.add(name, one["seconds"], one["processor_seconds"])
        self.tell("ranks", "seconds of two ranks over one with two threads", *side.ratio("ranks", "threads"))

    def half(self):
        shape, rows, window, dtype, _ = CASES["wide"]
        model, tokens, side = self.model("wide", shape), self.work / "wide.h5", Side()
        token_files.random_plain(tokens, rows, window, shape["vocab"], 0)
        config = self.config(model, tokens, dtype, iterations=1)
        output_of([self.espalier, "--quiet", "run", config, "--run-dir", self.work / "half"])
        plan = ("--plan", self.work / "half/plan.h5")
        for _ in range(self.a.rounds):
            for name, options in (("dense", ()), ("half", plan)):
                (one,) = self.passes(config, rows, window, ["taylor"], options=options)
                side.add(name, one["seconds"], one["processor_seconds"])
        self.tell("half", "seconds of `taylor` at half of the decoder parameters over those of all", *side.ratio("half", "dense"))

    def tell(self, case, what, clock, processor, more=""):
        self.results.setdefault(case, {})[what] = {"ratio": clock, "processor_ratio": processor}
        print(f"{case}: {what}: {clock:.3f} (processor time {processor:.3f}){'; ' + more if more else ''}", flush=True)


def main():
    everything = (*CASES, "ranks", "half")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--cases", nargs="+", choices=everything, default=everything)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(a, pathlib.Path(work))
        for case in a.cases:
            bench.beside(case) if case in CASES else getattr(bench, case)()
        if a.out:
            pathlib.Path(a.out).write_text(json.dumps({"rounds": a.rounds, **bench.results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
