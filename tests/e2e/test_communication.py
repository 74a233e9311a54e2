"""Collectives and bytes that a run counted are those of the formula in docs/communication.md."""

import math
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import SHAPE, Case, main, metrics_of, run

LAYERS, HIDDEN, VOCABULARY = SHAPE["layers"], SHAPE["hidden"], SHAPE["vocab"]
HEADS, HEAD_DIM, CHANNELS = SHAPE["heads"], SHAPE["head_dim"], SHAPE["channels"]
SCORED = LAYERS - 1  # the last layer is protected, so the lowest scored half is 0
# Rows, tokens and predictions of the micro-batches: two rows each, the longest first, cut to the longest of them.
DOMAINS = [[(2, 12, 22)] * 3, [(2, 12, 11 + 11), (2, 9, 8 + 6), (1, 4, 3)]]
BATCHES = DOMAINS[0] + DOMAINS[1]


def tensor_group(ranks, wire, rows=1):
    """(collectives, bytes) that rank 0 hands over in its tensor group, which has all the data."""
    chunk = min(2048, max(16, 2**26 // math.ceil(VOCABULARY / ranks)))
    collectives, size = 2, 2 * 8 + 8 * rows * SCORED * (HEADS + CHANNELS) // ranks
    for sequences, tokens, predictions in BATCHES:
        hidden = sequences * tokens * HIDDEN * wire
        collectives += 1 + 2 * LAYERS + 2 * math.ceil(predictions / chunk) + 1 + 2 * LAYERS - 1 + 1
        size += (1 + 2 * LAYERS) * hidden + 3 * predictions * wire + hidden + (2 * LAYERS - 1) * hidden + 8
    return collectives, size


def gradients(number):
    """(collectives, bytes) of the gradients of all scored tensors: q, o, gate, up, down."""
    elements = 2 * HEADS * HEAD_DIM * HIDDEN + 3 * CHANNELS * HIDDEN
    return SCORED * 5, SCORED * elements * number


def world_group(data, rows=1):
    batches = [BATCHES] if rows == 1 else DOMAINS
    calls = sum(math.ceil(len(b) / data) + 1 for b in batches) + 1 + 2 * rows
    return calls, 16 * calls


class Counted(Case):
    def counted(self, name, tensor, data, **change):
        config = self.bench.config(name, **{"evaluation": {"perplexity": []}, **change})
        run_dir = self.folder / name
        self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
        row = metrics_of(run_dir)[1]
        self.assertEqual(row["tokens"], sum(n for _, _, n in BATCHES))
        return {k: (v["collectives"], v["bytes"]) for k, v in row["communication"].items()}

    def test_tensor_group(self):
        for dtype, wire in [("float32", 4), ("bfloat16", 4), ("float64", 8)]:
            with self.subTest(dtype):
                found = self.counted(dtype, 2, 1, model={"path": "model", "dtype": dtype})
                self.assertEqual(found["tensor"], tensor_group(2, wire))
                self.assertEqual(found["data"], (0, 0))
                self.assertEqual(found["world"], world_group(1))

    def test_data_group(self):
        for dtype, number in [("float32", 4), ("bfloat16", 4), ("float64", 8)]:
            with self.subTest(dtype):
                found = self.counted(dtype, 1, 2, model={"path": "model", "dtype": dtype})
                collectives, size = gradients(number)
                self.assertEqual(found["data"], (collectives + 3, size + 2 * 2 * 8 + 8))
                self.assertEqual(found["tensor"], (0, 0))
                self.assertEqual(found["world"], world_group(2))

    def test_sums_of_each_domain_cross_together(self):
        """What is additive per unit or per feature is sent once for all domains, however they are combined."""
        heads, channels = HEADS, CHANNELS
        features = HEADS * HEAD_DIM
        for criterion, numbers in [("taylor_gate", heads + channels), ("taylor_gate_sample", heads + channels),
                                   ("wanda_sp", features + channels), ("flap", 2 * (features + channels))]:
            for combine in ("pooled", "weighted_mean"):
                with self.subTest(criterion, combine=combine):
                    change = {"importance": {"criterion": criterion, "normalization": "none"},
                              "calibration": {"combine": combine}}
                    found = self.counted(f"{criterion} {combine}", 1, 2, **change)
                    size = 8 * len(DOMAINS) * SCORED * numbers
                    self.assertEqual(found["data"], (1 + 3, size + 2 * 16 + 8))

    def test_matrices_of_obs(self):
        """Gates are gathered per micro-batch, rows of matrices once, and every rank hears what the others found."""
        halves = [HEADS * HEAD_DIM, CHANNELS] * SCORED
        for dtype, number in [("float32", 4), ("float64", 8)]:
            for curvature in ("full", "scalar"):
                change = {"model": {"path": "model", "dtype": dtype}, "prune": {"iterations": 1},
                          "importance": {"criterion": "obs", "curvature": curvature, "normalization": "cost"}}
                with self.subTest(dtype, curvature=curvature):
                    outputs = HIDDEN * HIDDEN * number if curvature == "full" else 0
                    found = self.counted(f"{dtype} {curvature} tensor", 2, 1, **change)
                    collectives, size = tensor_group(2, number)
                    collectives += len(BATCHES) * len(halves) + (3 if outputs else 2) * len(halves)
                    size += sum(sequences * tokens * k * number for sequences, tokens, _ in BATCHES for k in halves)
                    size += sum((k * k + k * HIDDEN) * number + outputs for k in halves)
                    self.assertEqual(found["tensor"], (collectives, size))
                    calls, agreed = world_group(1)
                    self.assertEqual(found["world"], (calls + 2, agreed + 16 + 8 * SCORED * (HEADS + CHANNELS)))
                    found = self.counted(f"{dtype} {curvature} data", 1, 2, **change)
                    size = sum(k * k * number + (outputs or 8) for k in halves)
                    self.assertEqual(found["data"], (2 * len(halves) + 3, size + 2 * 2 * 8 + 8))

    def test_layer_by_layer(self):
        """Each layer's attention runs once more; ranks agree about layers where they otherwise agree about the pass."""
        change = {"execution": {"order": "layer_major"}}
        hidden = sum(sequences * tokens * HIDDEN * 8 for sequences, tokens, _ in BATCHES)
        collectives, size = tensor_group(2, 8)
        found = self.counted("layers tensor", 2, 1, **change)
        collectives += LAYERS * len(BATCHES) + LAYERS - len(BATCHES)
        self.assertEqual(found["tensor"], (collectives, size + LAYERS * hidden + 8 * (LAYERS - 1) * len(BATCHES)))
        for tensor, data in ((2, 1), (1, 2)):
            found = self.counted(f"layers {tensor} {data}", tensor, data, **change)
            calls = (2 * LAYERS + 2) * (math.ceil(len(BATCHES) / data) + 1) + 1 + 6 * LAYERS
            self.assertEqual(found["world"], (calls, 16 * calls))
        collectives, size = gradients(8)
        self.assertEqual(found["data"], (collectives + LAYERS + 2, size + (LAYERS + 1) * 16 + 8))

    def test_reduced_scores(self):
        found = self.counted("scores", 1, 2, importance={"reduction": "scores"})
        self.assertEqual(found["data"], (1 + 3, 8 * SCORED * (HEADS + CHANNELS) + 2 * 16 + 8))

    def test_domains_by_themselves(self):
        found = self.counted("domains", 2, 1, calibration={"combine": "weighted_mean"})
        self.assertEqual(found["tensor"], tensor_group(2, 8, rows=2))
        self.assertEqual(found["world"], world_group(1, rows=2))

    def test_batches_may_be_skipped(self):
        found = self.counted("skip", 1, 2, calibration={"non_finite": "skip-batch"})
        calls, size = world_group(2)
        self.assertEqual(found["world"], (calls + 1, size + 8))

    def test_over_mpi_by_name_is_over_mpi_by_default(self):
        """Without GPUs `auto` is `mpi`; the start of a run says which."""
        found = {}
        for way in ("auto", "mpi"):
            config = self.bench.config(way, evaluation={"perplexity": []})
            result = self.succeeds("run", config, "--run-dir", self.folder / way, "--tensor", 2, "--set",
                                   f"execution.collectives={way}", ranks=2)
            self.assertIn("sums     of tensors over MPI, in host memory", result.out + result.err)
            rows = metrics_of(self.folder / way)
            found[way] = [{key: row[key] for key in ("loss", "removed_heads") if key in row} for row in rows]
        self.assertEqual(found["auto"], found["mpi"])

    def test_nccl_without_a_gpu_is_refused_with_the_reason(self):
        for ranks in (1, 2):
            for command in ("run", "score"):
                with self.subTest(command, ranks=ranks):
                    config = self.bench.config(f"{command} {ranks}", evaluation={"perplexity": []})
                    place = self.folder / f"{command}-{ranks}"
                    out = ("--run-dir", place) if command == "run" else ("--out", place)
                    result = run(command, config, *out, "--set", "execution.collectives=nccl", ranks=ranks)
                    self.assertEqual(result.code, 69, result)
                    said = re.sub(r"\s+", " ", result.err)
                    for words in ("execution.collectives = nccl, and NCCL cannot be used", "this build has no NCCL",
                                  "Use execution.collectives: auto or mpi"):
                        self.assertEqual(said.count(words), 1, result)

    def test_one_process_sends_nothing(self):
        self.assertEqual(set(self.counted("one", 1, 1).values()), {(0, 0)})


if __name__ == "__main__":
    main()
