#!/usr/bin/env python3
"""A random Qwen2 of 1.2 B parameters (24 layers, hidden 2048, ffn 5504, 16/4 heads of 128, vocabulary 32,000), float32, 8
sequences of 256 tokens: one `taylor` iteration at tensor = 1 and 2 and one `taylor_gate` iteration, each keeping what graphs
fit into memory (`execution.recompute: auto`) and none (`all`), and `taylor` layer by layer with boundaries in memory and in files,
beside transformers + autograd on the same work in the same run.

  scale.py --espalier build/release/bin/espalier [--layers 24] [--only sequences|layers] [--work DIR] [--out scale.json]

Prints seconds per phase, peak memory per rank next to what was computed, and tokens/s; nothing is asserted about time.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "oracle"), str(HERE.parent / "models")]
import token_files  # noqa: E402

SHAPE = {"hidden": 2048, "heads": 16, "kv_heads": 4, "head_dim": 128, "channels": 5504, "vocab": 32000}
ROWS, WINDOW = 8, 256
GIB = 2**30

BASELINE = """
import json, resource, sys, time, torch, h5py, transformers
transformers.logging.set_verbosity_error()
torch.set_num_threads(int(sys.argv[3]))
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa")
gates = sys.argv[4] == "gate"
tokens = torch.tensor(h5py.File(sys.argv[2])["tokens"][:], dtype=torch.long)
for p in model.parameters(): p.requires_grad_(False)
kept = []
def keep(_, inputs):
    if not inputs[0].requires_grad:  # below the lowest gate nothing is differentiated
        inputs[0].requires_grad_(True)
    inputs[0].retain_grad()
    kept.append(inputs[0])
# What the run can remove: the first int(0.1 L) layers and the last one are protected.
for layer in model.model.layers[int(0.1 * len(model.model.layers)):-1]:
    if gates:
        for m in (layer.self_attn.o_proj, layer.mlp.down_proj):
            m.register_forward_pre_hook(keep)
    else:
        for m in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            m.weight.requires_grad_(True)
begin = time.time()
for i in range(0, len(tokens), 4):
    rows = tokens[i:i + 4]
    out = model(rows).logits
    loss = torch.nn.functional.cross_entropy(out[:, :-1].reshape(-1, out.shape[-1]), rows[:, 1:].reshape(-1))
    (loss * len(rows) / len(tokens)).backward()
    if gates:
        sums = [(h * h.grad).sum((0, 1)) for h in kept]
        kept.clear()
if not gates:
    scores = [(p * p.grad).abs().sum(1) for p in model.parameters() if p.grad is not None]
print(json.dumps({"seconds": time.time() - begin, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def baseline(model, tokens, threads, kind):
    done = subprocess.run([sys.executable, "-c", BASELINE, model, tokens, str(threads), kind], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def espalier(program, config, run_dir, tensor, threads):
    launcher = [] if tensor == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(tensor)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    begin = time.time()
    done = subprocess.run([*launcher, program, "--quiet", "run", str(config), "--run-dir", str(run_dir), "--tensor", str(tensor),
                           "--fast-verify"], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return rows[-1] | {"seconds_load": rows[0]["seconds"].get("load", 0), "seconds_all": time.time() - begin}


def computed_bytes(row, layers, micro_rows, tensor):
    """Weights and accumulators as the program counts them; inputs of both halves of every layer from the lowest scored one; the
    graphs of the halves that did not run twice, or one of them; the loss."""
    tokens = micro_rows * WINDOW
    scored = layers - int(0.1 * layers)
    inputs = 2 * scored * tokens * SHAPE["hidden"] * 4
    norm = 3 * SHAPE["hidden"]  # the widened input, its normalised form, the product with the weight
    mlp = tokens * 4 * (norm + 4 * SHAPE["channels"] // tensor)  # gate, silu(gate), up, their product
    heads = (3 * SHAPE["heads"] + 3 * SHAPE["kv_heads"]) * SHAPE["head_dim"] // tensor
    attention = tokens * 4 * (norm + 2 * heads)  # q, k, v, their rotations and contiguous copies, the output
    kept = (2 * scored - row["repeated_halves"]) // 2
    logits = min(tokens, max(16, 2**26 * tensor // SHAPE["vocab"])) * SHAPE["vocab"] // tensor * 4 * 3
    widest = 2 * mlp  # a graph and the gradients on their way through it
    return row["weight_bytes"] + row["statistics_bytes"] + inputs + kept * (mlp + attention) + max(widest, logits)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="per rank, and for the baseline")
    parser.add_argument("--only", choices=("sequences", "layers"), help="of the two orders; layers: beside autograd's `taylor` only")
    parser.add_argument("--work", help="keeps the checkpoint here and uses it again")
    parser.add_argument("--out")
    a = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    work = pathlib.Path(a.work or scratch.name)
    model = work / f"model-{a.layers}"
    if not model.exists():
        from make_random import make

        make(model, "qwen2", seed=0, layers=a.layers, shards=4, **SHAPE)
    tokens = work / "tokens.h5"
    token_files.random_plain(tokens, ROWS, WINDOW, SHAPE["vocab"], 0)
    results = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": a.threads, "layers": a.layers, "passes": []}
    sequences = [] if a.only == "layers" else list(itertools.product(("taylor", "taylor_gate"), (1, 2), ("auto", "all")))
    for criterion, tensor, recompute in sequences:
        if criterion == "taylor_gate" and tensor == 2:
            continue
        config = work / f"{criterion}-{tensor}-{recompute}.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(model), "dtype": "float32"}, "device": "cpu",
            "execution": {"order": "sample_major", "recompute": recompute},
            "calibration": {"domains": [{"name": "random", "tokens": str(tokens)}], "micro_batch_tokens": 4 * WINDOW},
            "importance": {"criterion": criterion, "normalization": "param_mean"}, "prune": {"target": 0.1, "iterations": 1}}))
        with tempfile.TemporaryDirectory(dir=work) as runs:
            row = espalier(os.path.abspath(a.espalier), config, pathlib.Path(runs) / "run", tensor, a.threads)
        computed = computed_bytes(row, a.layers, 4, tensor)
        one = {"criterion": criterion, "tensor": tensor, "recompute": recompute, "repeated_halves": row["repeated_halves"],
               "seconds": row["seconds"], "seconds_load": row["seconds_load"],
               "tokens_per_s": ROWS * WINDOW / row["seconds"]["calibrate"], "peak_bytes": row["peak_bytes"],
               "computed_bytes": computed}
        results["passes"].append(one)
        print(f"espalier {criterion:<12} tensor {tensor} recompute {recompute:<4}: {one['tokens_per_s']:7.1f} tokens/s, "
              f"peak {one['peak_bytes'] / GIB:.2f} GiB a rank (computed {computed / GIB:.2f}), seconds "
              + ", ".join(f"{k} {v:.2f}" for k, v in row["seconds"].items()), flush=True)
    for boundaries in () if a.only == "sequences" else ("memory", "files"):
        config = work / f"layers-{boundaries}.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(model), "dtype": "float32"}, "device": "cpu",
            "execution": {"order": "layer_major", "boundaries": boundaries},
            "calibration": {"domains": [{"name": "random", "tokens": str(tokens)}], "micro_batch_tokens": 4 * WINDOW},
            "importance": {"criterion": "taylor", "normalization": "param_mean"}, "prune": {"target": 0.1, "iterations": 1}}))
        with tempfile.TemporaryDirectory(dir=work) as runs:
            row = espalier(os.path.abspath(a.espalier), config, pathlib.Path(runs) / "run", 1, a.threads)
        one = {"criterion": "taylor", "tensor": 1, "order": "layer_major", "boundaries": boundaries, "seconds": row["seconds"],
               "tokens_per_s": ROWS * WINDOW / row["seconds"]["calibrate"], "peak_bytes": row["peak_bytes"],
               "boundary_bytes": row["boundary_bytes"], "read_bytes": row["read_bytes"]}
        results["passes"].append(one)
        print(f"espalier taylor       layer by layer, boundaries in {boundaries:<6}: {one['tokens_per_s']:7.1f} tokens/s, peak "
              f"{one['peak_bytes'] / GIB:.2f} GiB (boundaries {one['boundary_bytes'] / GIB:.2f}), seconds "
              + ", ".join(f"{k} {v:.2f}" for k, v in row["seconds"].items()), flush=True)
    for kind in ("taylor",) if a.only == "layers" else ("taylor", "gate"):
        base = baseline(str(model), str(tokens), a.threads, kind)
        results[f"transformers_{kind}"] = base | {"tokens_per_s": ROWS * WINDOW / base["seconds"]}
        print(f"transformers + autograd, {kind}: {ROWS * WINDOW / base['seconds']:.1f} tokens/s, "
              f"peak {base['peak'] / GIB:.2f} GiB", flush=True)
    if a.out:
        pathlib.Path(a.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
