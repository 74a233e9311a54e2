#!/usr/bin/env python3
"""Compares espalier with transformers on one checkpoint: losses, logits and scores, at several rank layouts.

  compare.py --espalier build/ci/bin/espalier --model DIR --tokens a.h5 b.h5
  compare.py --espalier build/ci/bin/espalier --model DIR --tokens a.h5 --layouts 1x1,2x2 --criteria taylor --units kv_group

float64: the largest difference must stay below 1e-9 of the largest score of its kind. Narrower types: below four times the
largest error that transformers' own float32 (bfloat16, float16) has against float64 on the same case; for a loss, which is a
mean over tokens, below four times the mean error of its tokens, since their errors may cancel by luck. Prints a table; exit
code 1 when anything is outside.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import h5py
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import reference  # noqa: E402

CRITERIA = ("taylor", "taylor_gate", "taylor_gate_sample", "wanda_sp", "flap", "magnitude")
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (3, 1))
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# More ranks than cores: a waiting rank must not eat the time of one that works. Named, ob1 is taken without 0.2 s of search.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "--mca", "pml", "ob1"]


def run(espalier, ranks, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = [] if ranks == 1 else [*MPIRUN, "-n", str(ranks)]
    done = subprocess.run([*launcher, espalier, "--quiet", *words], env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} at {ranks} ranks: exit {done.returncode}\n{done.stderr}")
    return done.stdout


class Case:
    """One checkpoint with its token files, in a scratch directory."""

    def __init__(self, espalier, model, tokens, scratch, weights=None, objectives=None, micro_batch_tokens=64):
        self.espalier, self.model, self.scratch = espalier, pathlib.Path(model), pathlib.Path(scratch)
        self.tokens = [pathlib.Path(t).absolute() for t in tokens]
        self.weights = weights or [1.0 + 0.5 * i for i in range(len(tokens))]
        self.objectives = objectives or ["causal_lm"] * len(tokens)
        self.micro_batch_tokens = micro_batch_tokens
        self.count = 0

    def domains(self):
        return [reference.Domain(t, w, o) for t, w, o in zip(self.tokens, self.weights, self.objectives)]

    def config(self, dtype, criterion="taylor", unit="query_head", normalization="none", combine="pooled", extra=None,
               execution=None):
        value = {
            "model": {"path": str(self.model.absolute()), "dtype": dtype},
            "device": "cpu",
            "calibration": {
                "domains": [{"name": f"d{i}", "tokens": str(t), "weight": w, "objective": o}
                            for i, (t, w, o) in enumerate(zip(self.tokens, self.weights, self.objectives))],
                "combine": combine,
                "micro_batch_tokens": self.micro_batch_tokens,
            },
            "importance": {"criterion": criterion, "normalization": normalization, **(extra or {})},
            "prune": {"attention_unit": unit},
            "execution": execution or {},
            "evaluation": {"perplexity": [{"name": f"d{i}", "tokens": str(t)} for i, t in enumerate(self.tokens)]},
        }
        self.count += 1
        path = self.scratch / f"case{self.count}.yaml"
        path.write_text(json.dumps(value))
        return path

    def scores(self, layout, **config):
        """({kind: [rows, L, units]} raw, {kind: [L, units]} score, losses)"""
        out = self.scratch / f"scores{self.count}.h5"
        run(self.espalier, layout[0] * layout[1], "score", str(self.config(**config)), "--tensor", str(layout[0]),
            "--out", str(out))
        raw, score = {}, {}
        with h5py.File(out) as file:
            for kind in ("attention", "mlp"):
                layer = torch.tensor(file[kind]["layer"][:])
                shape = (int(layer.max()) + 1, -1)
                raw[kind] = torch.stack([torch.tensor(r).reshape(shape) for r in file[kind]["raw"][:]])
                score[kind] = torch.tensor(file[kind]["score"][:]).reshape(shape)
            losses = list(file.attrs["loss"])
        out.unlink()
        return raw, score, losses

    def evaluate(self, layout, dtype, rows=2):
        out, logits = self.scratch / f"eval{self.count}.json", self.scratch / f"logits{self.count}.h5"
        run(self.espalier, layout[0] * layout[1], "eval", str(self.config(dtype)), "--tensor", str(layout[0]),
            "--out", str(out), "--logits", str(logits), "--logit-rows", str(rows))
        with h5py.File(logits) as file:
            values = [torch.tensor(file[f"d{i}"][:]) for i in range(len(self.tokens))]
        losses = [json.loads(out.read_text())["perplexity"][f"d{i}"]["loss"] for i in range(len(self.tokens))]
        return losses, values


def difference(ours, theirs):
    """The largest; infinite unless both have infinity at the same places."""
    apart = (ours - theirs).abs()
    apart[ours.isinf() & (ours == theirs)] = 0
    return apart.nan_to_num(nan=float("inf")).max().item()


def largest(values):
    return values[values.isfinite()].abs().max().item()


class Table:
    """Collects differences beside their bounds and remembers whether all held."""

    def __init__(self):
        self.failures = 0

    def row(self, what, found, bound):
        holds = found <= bound
        self.failures += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {what:<64} {found:.3e} <= {bound:.3e}", flush=True)


def compare_evaluation(case, table, dtype, layouts, rows=2):
    with reference.quiet():
        exact = reference.load(case.model, torch.float64)
        model = exact if dtype == "float64" else reference.load(case.model, torch.float32)
    expected = []
    for path in case.tokens:
        true_losses, true_logits = reference.token_losses(exact, path), reference.logits(exact, path, rows)
        true_loss = true_losses.mean().item()
        if dtype == "float64":
            loss_bound, logit_bound = 1e-9 * abs(true_loss), 1e-9 * true_logits.abs().max().item()
        else:
            loss_bound = 4 * (reference.token_losses(model, path) - true_losses).abs().mean().item()
            logit_bound = 4 * difference(reference.logits(model, path, rows), true_logits)
        expected.append((true_loss, loss_bound, true_logits, logit_bound))
    for layout in layouts:
        losses, logits = case.evaluate(layout, dtype, rows)
        for i, (true_loss, loss_bound, true_logits, logit_bound) in enumerate(expected):
            name = f"{dtype} {layout[0]}x{layout[1]} d{i}"
            table.row(f"{name} loss", abs(losses[i] - true_loss), loss_bound)
            table.row(f"{name} logits", difference(logits[i], true_logits), logit_bound)


def compare_scores(case, table, dtype, criterion, unit, layouts, normalization="none"):
    with reference.quiet():
        exact = reference.load(case.model, torch.float64)
    truth, true_losses = reference.raw_scores(exact, case.domains(), criterion, unit)
    bound = {k: 1e-9 * largest(v) for k, v in truth.items()}
    if dtype == "float32":
        with reference.quiet():
            narrow, _ = reference.raw_scores(reference.load(case.model, torch.float32), case.domains(), criterion, unit)
        bound = {k: 4 * difference(narrow[k], truth[k]) for k in truth}
    wanted = reference.normalised(truth, exact.config, normalization, unit)
    for layout in layouts:
        name, *extra = criterion.split()
        extra = {"curvature": extra[0]} if extra else None
        raw, score, losses = case.scores(layout, dtype=dtype, criterion=name, unit=unit, normalization=normalization, extra=extra)
        for kind in ("attention", "mlp"):
            name = f"{dtype} {layout[0]}x{layout[1]} {criterion} {unit} {kind}"
            table.row(name, difference(raw[kind][0], truth[kind]), bound[kind])
            if normalization != "none" and dtype == "float64":
                table.row(f"{name} {normalization}", difference(score[kind], wanted[kind]),
                          1e-9 * largest(wanted[kind]))
        if dtype == "float64":
            worst = max(abs(a - b) for a, b in zip(losses, true_losses))
            table.row(f"{dtype} {layout[0]}x{layout[1]} {criterion} {unit} losses", worst, 1e-9 * max(map(abs, true_losses)))


def compare_combined(case, table, criterion, combine, layouts, normalization="param_mean"):
    """Scores of every domain alone, normalised, then combined."""
    with reference.quiet():
        exact = reference.load(case.model, torch.float64)
    per_domain = [reference.raw_scores(exact, [d], criterion, pooled=False)[0] for d in case.domains()]
    rows = [reference.normalised(raw, exact.config, normalization, "query_head") for raw in per_domain]
    wanted = reference.combined(rows, case.weights, combine)
    for layout in layouts:
        raw, score, _ = case.scores(layout, dtype="float64", criterion=criterion, normalization=normalization, combine=combine)
        for kind in ("attention", "mlp"):
            name = f"float64 {layout[0]}x{layout[1]} {criterion} {combine} {kind}"
            table.row(name, difference(score[kind], wanted[kind]), 1e-9 * largest(wanted[kind]))
            for i, one in enumerate(per_domain):
                table.row(f"{name} raw d{i}", difference(raw[kind][i], one[kind]), 1e-9 * largest(one[kind]))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True, help="the program")
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--tokens", nargs="+", required=True, help="token files, one domain each")
    parser.add_argument("--objectives", nargs="+", help="causal_lm, sft or margin, one per token file")
    parser.add_argument("--criteria", default=",".join(CRITERIA))
    parser.add_argument("--units", default="query_head,kv_group")
    parser.add_argument("--dtypes", default="float64,float32")
    parser.add_argument("--layouts", default=",".join(f"{t}x{d}" for t, d in LAYOUTS), help="tensor x data")
    return parser.parse_args()


def main():
    arguments = parse()
    torch.set_num_threads(1)
    layouts = [tuple(map(int, layout.split("x"))) for layout in arguments.layouts.split(",")]
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(os.path.abspath(arguments.espalier), arguments.model, arguments.tokens, scratch,
                    objectives=arguments.objectives)
        for dtype in arguments.dtypes.split(","):
            compare_evaluation(case, table, dtype, layouts)
            for criterion in arguments.criteria.split(","):
                for unit in arguments.units.split(","):
                    compare_scores(case, table, dtype, criterion, unit, layouts, "param_mean" if dtype == "float64" else "none")
    print(f"{table.failures} comparisons are outside their bounds" if table.failures else "all comparisons hold")
    sys.exit(1 if table.failures else 0)


if __name__ == "__main__":
    main()
