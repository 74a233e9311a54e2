"""What the tests of launch/report.py share: a run directory made by hand, and the program."""

import contextlib
import hashlib
import importlib.util
import io
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "report.py"
spec = importlib.util.spec_from_file_location("espalier_report_program", SCRIPT)
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)

CONFIG = """\
model:
  path: models/small
calibration:
  domains:
    - {name: prose, tokens: prose.h5, objective: causal_lm}
    - {name: code, tokens: code.h5, objective: causal_lm}
importance: {criterion: taylor, normalization: gisp}
prune:
  kinds: [attention, mlp]
  attention_unit: query_head
  ranking: global
  target: 0.5
  measure: structures
  iterations: 3
"""
# Three layers of four heads and ten channels: 42 units, of which 7, 14 and 21 are gone. The last layer is protected.
ATTENTION = [[-1, 3, -1, -1], [1, 2, 2, 3], [-1, -1, -1, -1]]
MLP = [[1, 1, 2, 2, 3, 3, -1, -1, -1, -1], [1, 1, 1, 1, 2, 2, 2, 3, 3, 3], [-1] * 10]
LOSSES = [None, {"prose": 1.0, "code": 2.0}, {"prose": 1.004, "code": 2.03}, {"prose": 1.1, "code": 2.05}]
PERPLEXITIES = [{"prose": 10.0, "code": 20.0}, {}, {"prose": 10.1, "code": 20.6}, {"prose": 13.0, "code": 21.0}]


def row(iteration):
    """A line of metrics.jsonl."""
    attention, mlp = np.array(ATTENTION), np.array(MLP)
    gone = [int(((m > 0) & (m <= iteration)).sum()) for m in (attention, mlp)]
    share = sum(gone) / 42
    line = {
        "schema": 1, "iteration": iteration, "attempt": 1, "sparsity_structures": share, "sparsity_parameters": share * 0.9,
        "sparsity_total_parameters": share * 0.8, "parameters": 100_000 - 1000 * sum(gone), "decoder_parameters": 90_000 - 1000 * sum(gone),
        "heads_kept": 12 - gone[0], "kv_heads_kept": 6, "channels_kept": 30 - gone[1], "plan_digest": f"{iteration:064}",
        "loss": LOSSES[iteration] or {}, "perplexity": PERPLEXITIES[iteration], "margin_at_cut": 0.25 if iteration else 0.0, "tokens": 500,
        "seconds": {"calibrate": 2.0, "save": 0.5} if iteration else {"load": 1.0}, "peak_bytes": 1 << 30,
    }
    if PERPLEXITIES[iteration]:
        line["multiple_choice"] = {"arc": {"acc": 0.5 - iteration / 10, "acc_stderr": 0.05, "items": 100}}
    if iteration:
        line.update(target=iteration / 6, seconds_iteration=2.5)
    return line


def status(**change):
    return {"state": "finished", "iteration": 3, "iterations": 3, "phase": "", "eta_seconds": None, "last_commit": "iter-000003",
            "heartbeat": "2030-01-31T12:00:00Z", "attempt": 1, "exit_code": 0, "reason": "", **change}


def plan_arrays(iteration=3):
    """The matrices after an iteration: what falls later is kept."""
    matrices = {"attention": np.array(ATTENTION, "int32"), "mlp": np.array(MLP, "int32")}
    return {kind: np.where(m > iteration, -1, m).astype("int32") for kind, m in matrices.items()}


def score_of(kind, layer, unit):
    """Low where a unit falls early."""
    at = {"attention": ATTENTION, "mlp": MLP}[kind][layer][unit]
    return 10.0 ** ((at if at > 0 else 5) + 0.01 * unit)


def write_plan(file, removed_at, iteration=3):
    for kind, matrix in removed_at.items():
        file[f"{kind}/removed_at"] = matrix
        file[f"{kind}/order"] = matrix.astype("int64")
    file.attrs.update(format="espalier-plan", version=1, attention_unit="query_head", iteration=iteration)
    sign(file)


def sign(file):
    """Writes the digest of what the file has (docs/file-formats.md)."""
    digest = hashlib.sha256()
    for kind in ("attention", "mlp"):
        for name, width in (("removed_at", 4), ("order", 8)):
            values = np.asarray(file[f"{kind}/{name}"][()])
            digest.update(b"".join(int(n).to_bytes(8, "little") for n in values.shape))
            digest.update(values.astype(f"<i{width}").tobytes())
    file.attrs["digest"] = digest.hexdigest()


def write_scores(file, removed_at, iteration=3, layers=2):
    """Of the units that were there before the iteration; the last layer has none."""
    for kind, matrix in removed_at.items():
        places = [(l, u) for l, u in np.argwhere((matrix < 0) | (matrix == iteration)) if l < layers]
        file[f"{kind}/layer"] = np.array([l for l, _ in places], "int32")
        file[f"{kind}/unit"] = np.array([u for _, u in places], "int32")
        file[f"{kind}/score"] = np.array([score_of(kind, l, u) for l, u in places], "float64")
    file.attrs.update(criterion="taylor", normalization="gisp")


def write_commit(folder, fill):
    """A commit whose state.h5 is what fill(file) writes, with a manifest that names it."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "state.h5", "w") as file:
        fill(file)
    seal(folder)


def seal(folder):
    digest = hashlib.sha256((folder / "state.h5").read_bytes()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps({"files": {"state.h5": {"sha256": digest}}}))


def overlap():
    matrix = {"all": [[1.0, 0.25], [0.25, 1.0]], "layers": [{"layer": l, "jaccard": [[1.0, 0.5], [0.5, None]]} for l in range(3)]}
    return {"schema": 1, "domains": ["prose", "code"], "iterations": [{"iteration": i, "attention": matrix, "mlp": matrix} for i in (1, 3)]}


def refit():
    """What refit.json holds of a refit of the last plan: one matrix kept by the guard, one without inputs."""
    facts = (
        (0, "attention", "refitted", 12, 50.0, 0.1, 0.3, 0.2), (0, "mlp", "dense", 40, 15.0, 10.0, 0.25, 0.26),
        (1, "attention", "empty", 0, 0.0, 0.0, 0.0, 0.0), (1, "mlp", "refitted", 4, 150.0, 1e-3, 0.5, 0.125),
        (2, "attention", "refitted", 16, 37.5, 1.0, 0.125, 0.0625), (2, "mlp", "obs", 10, 60.0, 1e-5, 0.75, None),
    )
    names = ("layer", "kind", "outcome", "width", "tokens_per_width", "ridge", "error_before", "error_after")
    return {
        "schema": 1, "plan_digest": f"{3:064}", "tokens": 600, "halves": [dict(zip(names, half, strict=True)) for half in facts],
        "perplexity_before": PERPLEXITIES[3], "perplexity": {"prose": 11.0, "code": 20.5},
        "multiple_choice": {"arc": {"acc": 0.4, "acc_stderr": 0.05, "items": 100}}, "seconds": {"refit": 4.0, "evaluate": 0.5},
    }


def make_run(folder, iterations=3):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(CONFIG)
    (folder / "status.json").write_text(json.dumps(status()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(iterations + 1)))
    (folder / "overlap.json").write_text(json.dumps(overlap()))
    program = {"version": "0.1.0", "git": "abc"}
    (folder / "provenance.json").write_text(json.dumps({"program": program, "layout": {"ranks": 2, "tensor": 2, "data": 1}, "hosts": ["a"]}))
    removed_at = plan_arrays(iterations)
    with h5py.File(folder / "plan.h5", "w") as file:
        write_plan(file, removed_at, iterations)

    def fill(file):
        write_plan(file, removed_at, iterations)
        write_scores(file, removed_at, iterations)

    write_commit(folder / f"ckpt/iter-{iterations:06}", fill)
    (folder / "logs/attempt-001").mkdir(parents=True)
    return folder


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.run_dir = make_run(self.folder / "run")

    def program(self, *words):
        """(exit code, what it printed, what it said on stderr)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = report.main([str(word) for word in words])
        return code, out.getvalue(), err.getvalue()

    def page(self, *words, drawn=False):
        """The page's text; pictures are made but, as that takes longest, not drawn unless wanted."""
        from espalier_report import drawing

        empty = contextlib.nullcontext() if drawn else mock.patch.object(drawing, "svg", lambda figure: "<svg/>")
        with empty:
            code, out, err = self.program(self.run_dir, *words)
        self.assertEqual((code, err), (0, ""))
        return pathlib.Path(out.strip()).read_text(encoding="utf-8")
