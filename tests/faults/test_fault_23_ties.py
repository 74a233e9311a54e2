"""Equal scores, also when all are zero, fall in one order (layer, kind, unit) on any layout; groups stay whole, layers
may empty.

Prunes a model whose weights are zero, so that every score of every criterion ties, on one to four ranks, by single
heads, by groups and until whole layers are gone; each result must be the same everywhere and in that order.
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import EXPORT
from workbench import Case, digest_of, main, metrics_of, plan_of

LAYOUTS = [(1, 1), (2, 1), (1, 2), (4, 1)]  # tensor, data
KINDS = ("attention", "mlp")
NO_EVALUATION = {"evaluation": {"perplexity": []}}


class Ties(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        path = cls.bench.model / "model.safetensors"
        weights = load_file(path)
        for name, value in weights.items():
            if ".self_attn." in name or ".mlp." in name:
                value[...] = 0
        save_file(weights, path, metadata={"format": "pt"})

    def plan(self, name, layouts, **change):
        """The plan that all these layouts agree on."""
        config = self.bench.config(name, **{**NO_EVALUATION, **change})
        found = {}
        for tensor, data in layouts:
            run_dir = self.folder / f"{name}-{tensor}x{data}"
            self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
            found[tensor, data] = digest_of(run_dir)
        self.assertEqual(len(set(found.values())), 1, found)
        self.last = run_dir
        return plan_of(run_dir / "plan.h5")[1]

    def removed(self, plan):
        """[(layer, kind, unit)] as they fell."""
        units = []
        for number, kind in enumerate(KINDS):
            order = plan[f"{kind}/order"]
            units += [(order[layer, unit], (int(layer), number, int(unit))) for layer, unit in np.argwhere(order >= 0)]
        return [unit for _, unit in sorted(units)]

    def test_single_heads(self):
        plan = self.plan("heads", LAYOUTS)
        removed = self.removed(plan)
        self.assertEqual(len(removed), 44)
        self.assertEqual(removed, sorted(removed), "not in the order of layer, kind, unit")
        # The floors: every layer keeps what protect.min_heads and min_channels ask for.
        for kind in KINDS:
            self.assertTrue((plan[f"{kind}/removed_at"] < 0).any(axis=1).all(), kind)

    def test_every_criterion_and_normalization(self):
        keys = {row["key"]: row["values"] for row in json.loads(self.succeeds("config", "--schema").out)}
        expected = None
        # obs refuses normalizations by a block's own statistics.
        criteria = [one for one in keys["importance.criterion"] if one not in ("random", "obs")]
        pairs = [(one, criteria[number % len(criteria)]) for number, one in enumerate(keys["importance.normalization"])]
        for normalization, criterion in [*pairs, ("cost", "obs")]:
            with self.subTest(normalization=normalization, criterion=criterion):
                importance = {"normalization": normalization, "criterion": criterion}
                plan = self.plan(f"{normalization}-{criterion}", [(1, 1)], importance=importance, prune={"iterations": 1})
                removed = self.removed(plan)
                expected = expected or removed
                self.assertEqual(removed, expected)

    def test_groups(self):
        prune = {"attention_unit": "kv_group", "target": 0.5}
        plan = self.plan("groups", LAYOUTS[:2], prune=prune, **EXPORT)
        at = plan["attention/removed_at"]
        self.assertTrue((at >= 0).any(), "no group fell")
        self.assertEqual(at.shape, (4, 2), "one entry per group of two query heads")
        self.assertEqual(self.removed(plan), sorted(self.removed(plan)))
        weights = load_file(self.last / "export/exact/model.safetensors")
        for layer in range(4):
            heads = weights.get(f"model.layers.{layer}.self_attn.q_proj.weight", np.zeros((0, 32))).shape[0] // 8
            groups = weights.get(f"model.layers.{layer}.self_attn.k_proj.weight", np.zeros((0, 32))).shape[0] // 8
            self.assertEqual(heads, 2 * groups, f"layer {layer}")

    def test_layers_that_are_emptied(self):
        protect = {"first_layers": 0, "last_layers": 0, "min_heads": 0, "min_channels": 0}
        plan = self.plan("emptied", LAYOUTS[::3], prune={"target": 0.8, "protect": protect}, **EXPORT)
        empty = [layer for layer in range(4) if all((plan[f"{kind}/removed_at"][layer] >= 0).all() for kind in KINDS)]
        self.assertGreaterEqual(len(empty), 2)
        self.assertEqual(self.removed(plan), sorted(self.removed(plan)))
        self.succeeds("verify", self.last / "export/exact")
        self.assertTrue(all(np.isfinite(list(row["loss"].values())).all() for row in metrics_of(self.last)[1:]))


if __name__ == "__main__":
    main()
