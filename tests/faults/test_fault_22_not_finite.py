"""NaN or infinity in weights, activations, gradients or scores ends the run with 65 and is named where it was born; with
`calibration.non_finite: skip-batch` up to `max_skipped` micro-batches are left out instead, and named.

Puts one into a weight, and by fault points into half layers, gradients and scores of one rank: the text has tensor or
layer, rank, micro-batch and domain, and nothing is ever ranked with it. Skipping: a token whose embedding overflows, on
four layouts, killed and continued; the end is that of a run on files without those sequences.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import SMALL
from killed import listed_points
from lone_failure import LAYOUTS, OneRankAlone
from spoilt import BEGUN, Refused, Row, Spoilt
from workbench import FULL, main, metrics_of, plan_of, run, status_of, write_tokens


def nan_in_weight(row):
    def spoil(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][-1, 5] = np.nan

    row.weights(spoil)


def infinite_norm(row):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = np.inf

    row.weights(spoil)


def nan_in_backward(row):
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;nth=2;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_on_one_data_rank(row):
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=nan"}


def nan_in_gates(row):
    row.set(importance={"criterion": "taylor_gate"})
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_forward(row):
    row.extra = {"ESPALIER_FAULT": "point=forward.exit;rank=RANK;iter=1;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layer(row):
    """Three domains' worth of micro-batches come before: 8 halves each, then the third of the second one."""
    row.extra = {"ESPALIER_FAULT": "point=layer.forward;rank=RANK;iter=1;nth=11;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layer_of_an_evaluation(row):
    row.extra = {"ESPALIER_FAULT": "point=layer.forward;rank=RANK;iter=0;nth=4;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layers_gradient(row):
    row.extra = {"ESPALIER_FAULT": "point=layer.backward;rank=RANK;iter=1;nth=3;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_weight_gradient(row):
    row.extra = {"ESPALIER_FAULT": "point=weight.gradient;rank=RANK;iter=1;nth=2;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_score(row):
    row.set(importance={"criterion": "taylor_gate"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;action=nan"}


def nan_in_a_score_of_a_domain(row):
    row.set(calibration={"combine": "weighted_mean"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;nth=2;action=nan"}


def nan_in_a_magnitude(row):
    row.set(importance={"criterion": "magnitude"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;action=nan"}


TABLE = [
    (nan_in_weight, 65, ["model.layers.2.mlp.up_proj.weight", "layer 2", "rank"], BEGUN),
    (infinite_norm, 65, ["model.norm.weight", "rank"], BEGUN),
    (nan_in_backward, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_on_one_data_rank, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_in_gates, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_in_forward, 65, ["NaN", "hidden states after layer 3", "tensor rank LAST", "micro-batch 1 of 6", "domain 'a'"], BEGUN),
    (nan_in_a_layer, 65, ["NaN", "output of the attention of layer 1", "model.layers.1.self_attn.o_proj.weight",
                          "tensor rank LAST", "micro-batch 2 of 6", "domain 'b'"], BEGUN),
    (nan_in_a_layer_of_an_evaluation, 65, ["NaN", "output of the MLP of layer 1", "tensor rank LAST", "micro-batch 1 of 2",
                                           "evaluation 'held'"], BEGUN),
    (nan_in_a_layers_gradient, 65, ["model.layers.2.post_attention_layernorm.weight", "MLP of layer 2", "tensor rank LAST",
                                    "micro-batch 1 of 6", "domain 'a'"], BEGUN),
    (nan_in_a_weight_gradient, 65, ["model.layers.2.mlp.up_proj.weight", "tensor rank LAST", "micro-batch 1 of 6"], BEGUN),
    (nan_in_a_score, 65, ["a score is not finite", "of the attention of layer 0", "self_attn.o_proj", "data rank LAST",
                          "all domains", "RANK"], BEGUN),
    (nan_in_a_score_of_a_domain, 65, ["a score is not finite", "layer 0", "data rank LAST", "domain 'b'", "RANK"], BEGUN),
    (nan_in_a_magnitude, 65, ["a score is not finite", "layer 0", "data rank LAST", "RANK"], BEGUN),
]


class NotFinite(Spoilt):
    def test_table(self):
        self.every_row(TABLE)


class OnOneRank(OneRankAlone):
    def test_a_value_that_is_not_finite_on_one_rank(self):
        """Where a point can make one, under both reductions: named, agreed, and nothing waits."""
        configs = [self.bench.config(name="gradients", **SMALL),
                   self.bench.config(name="scores", **SMALL, importance={"reduction": "scores"}),
                   self.bench.config(name="gate", **SMALL, importance={"criterion": "taylor_gate"})]
        cases = []
        points = [p for p, special in listed_points().items() if "nan" in special]
        self.assertGreaterEqual(len(points), 2)
        for number, point in enumerate(points):
            for which, config in enumerate(configs):
                if point == "weight.gradient" and config.stem == "gate":
                    continue  # the gates need none
                for layout in LAYOUTS if FULL else [LAYOUTS[(number + which) % len(LAYOUTS)]]:
                    rank = (number + 1) % (layout[0] * layout[1])
                    cases.append((f"{point} {config.stem} {layout}", config, layout,
                                  f"point={point};rank={rank};iter=1;nth=1;action=nan", 65,
                                  "(NaN or infinite|not finite)"))
        self.all_of(cases)


POISON = 63
SKIP = {"model": {"dtype": "float32"}, "calibration": {"non_finite": "skip-batch"}}
CRITERIA = {
    "pooled": {},
    "scores": {"importance": {"reduction": "scores"}},
    "gate": {"importance": {"criterion": "taylor_gate"}},
    "domains": {"calibration": {"combine": "weighted_mean"}},
}


class SkipBatch(Refused):
    """Micro-batches are pairs of sequences: one poisoned sequence takes its neighbour with it."""

    def row(self, name, **change):
        """Domain a with the poison in its sequence 3 of 6, b clean; the model overflows at the poison alone."""
        self.bench.config(**SKIP)
        row = Row(self.folder / name, self.bench.folder)
        row.set(**change)

        def spoil(tensors):
            # Only the poison has a coordinate that a norm then carries beyond float32.
            tensors["model.embed_tokens.weight"][:, 0] = 0
            for name in tensors:
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    tensors[name][0] = 0
            tensors["model.embed_tokens.weight"][POISON, 0] = 1
            tensors["model.layers.1.input_layernorm.weight"][0] = 3e38

        row.weights(spoil)
        rng = np.random.default_rng(5)
        self.tokens = {"a": rng.integers(0, POISON, (6, 12)), "b": rng.integers(0, POISON, (5, 12))}
        write_tokens(row.folder / "eval.h5", rows=4, tokens=rng.integers(0, POISON, (4, 12)))
        for domain, rows in self.poisoned.items():
            for number in rows:
                self.tokens[domain][number, 4] = POISON
        self.write(row)
        return row

    poisoned = {"a": [3]}
    skipped = [{"domain": "a", "rows": [2, 3]}]

    def write(self, row, without=None):
        for domain, tokens in self.tokens.items():
            write_tokens(row.folder / f"{domain}.h5", tokens=np.delete(tokens, (without or {}).get(domain, []), axis=0))

    def without(self, name, rows, ranks=1, **change):
        """What the run must come to: the same on files that never had those sequences."""
        row = self.row(name, **change)
        self.write(row, rows)
        result = run("run", row.config, "--run-dir", row.run_dir, ranks=ranks)
        self.assertEqual(result.code, 0, result)
        self.assertTrue(all("skipped" not in one for one in metrics_of(row.run_dir)))
        return row.run_dir

    def is_as(self, run_dir, expected, skipped, result, places=6):
        for one, other in zip(metrics_of(run_dir), metrics_of(expected), strict=True):
            if one["iteration"] > 0:
                self.assertEqual(one["skipped"], skipped, result)
            for name, loss in other["loss"].items():
                self.assertAlmostEqual(one["loss"][name], loss, places=places)
        ours, theirs = (plan_of(folder / "plan.h5")[1] for folder in (run_dir, expected))
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, name)

    def test_the_end_is_that_of_a_run_without_them(self):
        for name, change in CRITERIA.items():
            with self.subTest(name):
                golds = {}  # absolute scores of each data rank are added: what is removed depends on their number
                for ranks, tensor in ((1, 1), (2, 2), (2, 1), (4, 2)) if FULL or name == "pooled" else ((1, 1), (4, 2)):
                    data = ranks // tensor if name == "scores" else 1
                    if data not in golds:
                        golds[data] = self.without(f"{name}-gold{data}", {"a": [2, 3]}, data, **change)
                    row = self.row(f"{name}-{ranks}-{tensor}", **change)
                    result = run("run", row.config, "--run-dir", row.run_dir, "--tensor", tensor, ranks=ranks)
                    self.assertEqual(result.code, 0, result)
                    self.is_as(row.run_dir, golds[data], self.skipped, result, places=12 if ranks == 1 else 5)
                    self.assertIn("domain 'a', rows 2 3", result.text)
                    self.assertRegex(result.text, "skipped .*(NaN|finite)")

    def test_killed_and_continued(self):
        row = self.row("killed")
        whole = self.row("whole")
        result = run("run", whole.config, "--run-dir", whole.run_dir)
        self.assertEqual(result.code, 0, result)
        fault = {"ESPALIER_FAULT": "point=forward.enter;iter=3;nth=2;action=kill9"}
        self.assertEqual(run("run", row.config, "--run-dir", row.run_dir, extra=fault).code, 137)
        result = run("run", row.config, "--run-dir", row.run_dir, "--tensor", 2, ranks=2)
        self.assertEqual(result.code, 0, result)
        self.is_as(row.run_dir, whole.run_dir, self.skipped, result, places=5)

    def test_of_several_domains(self):
        self.poisoned = {"a": [0], "b": [4]}
        gold = self.without("gold", {"a": [0, 1], "b": [4]})
        row = self.row("both")
        result = run("run", row.config, "--run-dir", row.run_dir, "--tensor", 1, ranks=2)
        self.assertEqual(result.code, 0, result)
        skipped = [{"domain": "a", "rows": [0, 1]}, {"domain": "b", "rows": [4]}]
        self.is_as(row.run_dir, gold, skipped, result, places=5)

    def refused(self, name, words, **change):
        for ranks in (1, 2):
            row = self.row(f"{name}{ranks}", **change)
            result = run("run", row.config, "--run-dir", row.run_dir, ranks=ranks)
            self.fails(result, 65, words)
            self.assertEqual(list(row.folder.glob("run/ckpt/*")), [])
            self.assertEqual((status_of(row.run_dir)["state"], status_of(row.run_dir)["exit_code"]), ("failed", 65))

    def test_more_than_may_be_skipped(self):
        self.poisoned = {"a": [0, 2], "b": [1]}
        self.refused("many", ["max_skipped = 2"], calibration={"max_skipped": 2})

    def test_nothing_of_a_domain_is_left(self):
        self.poisoned = {"b": [0, 2, 4]}
        self.refused("empty", ["no sequence of domain 'b' is left"])

    def test_without_the_key_it_ends_the_run(self):
        self.refused("fail", ["domain 'a'", "micro-batch"], calibration={"non_finite": "fail"})

    def test_an_evaluation_is_never_cut(self):
        row = self.row("evaluation")
        tokens = np.random.default_rng(6).integers(0, POISON, (4, 12))
        write_tokens(row.folder / "eval.h5", tokens=tokens)
        fault = {"ESPALIER_FAULT": "point=layer.forward;iter=0;nth=4;action=nan"}
        result = run("run", row.config, "--run-dir", row.run_dir, extra=fault)
        self.fails(result, 65, ["evaluation 'held'"])


if __name__ == "__main__":
    main()
