"""NaN or infinity in weights, activations, gradients or scores ends the run with 65 and is named where it was born.

Puts one into a weight, and by fault points into half layers, gradients and scores of one rank: the text has tensor or
layer, rank, micro-batch and domain, and nothing is ever ranked with it.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import SMALL
from killed import listed_points
from lone_failure import LAYOUTS, OneRankAlone
from spoilt import BEGUN, Spoilt
from workbench import FULL, main


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


if __name__ == "__main__":
    main()
