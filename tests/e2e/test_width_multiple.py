"""Layers that keep multiples of channels (prune.width_multiple): runs, their smaller models, and what is refused."""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, digest_of, main, merged, metrics_of, plan_of, run, weights_of

CHANNELS = 24
MODEL = {"heads": 6, "kv_heads": 2}
BASE = {"evaluation": {"perplexity": []}, "prune": {"width_multiple": 4}}
UNITS = 4 * (6 + CHANNELS)


def kept(plan):
    """[layers]: channels that are left."""
    return (plan["mlp/removed_at"] < 0).sum(axis=1)


class WidthMultiple(Case):
    model = MODEL

    def config(self, name, **change):
        return self.bench.config(name, **merged(BASE, change))

    def require_multiples(self, plan, multiple=4):
        np.testing.assert_array_equal(kept(plan) % multiple, 0)

    def test_every_ranking_measure_and_unit(self):
        for ranking in ("global", "global_by_kind", "local"):
            for measure, unit in (("structures", "query_head"), ("parameters", "kv_group"), ("total_parameters", "equal_per_group")):
                with self.subTest(ranking=ranking, measure=measure, unit=unit):
                    name = f"{ranking}-{measure}"
                    config = self.config(name, prune={"ranking": ranking, "measure": measure, "attention_unit": unit,
                                                      "target": 0.4, "iterations": 3, "protect": {"last_layers": 0}})
                    run_dir = self.folder / name
                    self.succeeds("run", config, "--run-dir", run_dir)
                    _, larger = plan_of(run_dir / "plan.h5")
                    self.require_multiples(larger)
                    self.assertLess(kept(larger).sum(), 4 * CHANNELS)
                    for sparsity in (0.3, 0.15):
                        out = self.folder / f"{name}-{sparsity}"
                        self.succeeds("export", run_dir, "--sparsity", sparsity, "--out", out)
                        _, part = plan_of(out / "espalier_plan.h5")
                        self.require_multiples(part)
                        for kind in ("attention", "mlp"):
                            gone = part[f"{kind}/removed_at"] >= 0
                            self.assertTrue((~gone | (larger[f"{kind}/removed_at"] >= 0)).all(), "no part of the larger one")
                        larger = part

    def test_layouts_and_resume(self):
        change = {"prune": {"target": 0.5, "iterations": 4}, "export": [{"format": "exact", "path": "export/exact"}]}
        config = self.config("layouts", **change)
        found, weights = set(), []
        for tensor, data in ((1, 1), (2, 1), (1, 2), (3, 1)):
            run_dir = self.folder / f"{tensor}x{data}"
            result = self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
            found.add(digest_of(run_dir))
            weights.append(weights_of(run_dir / "export/exact"))
            self.assertIn("channels in multiples of 4", result.text)
            removed = metrics_of(run_dir)[-1]["sparsity_structures"] * UNITS
            self.assertLessEqual(removed, 0.5 * UNITS + 1e-9)
            self.assertGreater(removed, 0.5 * UNITS - 4)
        killed = self.folder / "killed"
        result = run("run", config, "--run-dir", killed, extra={"ESPALIER_FAULT": "point=forward.enter;iter=3;action=kill9"})
        self.assertEqual(result.code, 137, result)
        self.succeeds("resume", killed, "--tensor", 2, ranks=2)
        found.add(digest_of(killed))
        weights.append(weights_of(killed / "export/exact"))
        self.assertEqual(len(found), 1)
        self.assertTrue(all(one == weights[0] for one in weights))
        self.succeeds("verify", killed)
        _, plan = plan_of(killed / "plan.h5")
        self.require_multiples(plan)
        facts = json.loads((killed / "export/exact/config.json").read_text())
        self.assertEqual([layer["channels"] for layer in facts["espalier"]["layers"]], kept(plan).tolist())
        # Further from the export; a multiple that its widths are not is refused before anything is scored.
        on = self.config("on", model={"path": str(killed / "export/exact")}, prune={"target": 0.6, "iterations": 2})
        self.succeeds("run", on, "--run-dir", self.folder / "on")
        self.require_multiples(plan_of(self.folder / "on/plan.h5")[1])
        ragged = next(multiple for multiple in (24, 12, 8) if (kept(plan) % multiple).any())
        result = run("run", on, "--run-dir", self.folder / "no", "--set", f"prune.width_multiple={ragged}")
        self.assertEqual(result.code, 78, result)
        self.assertIn(f"prune.width_multiple is {ragged}, and layer", result.err)

    def test_what_rounding_costs_is_told(self):
        config = self.config("cost", prune={"target": 0.4, "iterations": 2, "kinds": ["mlp"], "width_multiple": 8})
        run_dir = self.folder / "run"
        result = self.succeeds("run", config, "--run-dir", run_dir)
        rows = metrics_of(run_dir)
        self.assertNotIn("rounding", rows[0])
        importance = sum(row["rounding"]["importance"] for row in rows[1:])
        free = sum(row["rounding"]["free_importance"] for row in rows[1:])
        self.assertGreaterEqual(importance, free)
        self.assertGreater(free, 0)
        self.assertIn(f"channels in multiples of 8: {100 * (importance - free) / free:+.2f}% importance removed", result.out)
        self.succeeds("run", config, "--run-dir", self.folder / "free", "--set", "prune.width_multiple=1")
        self.assertFalse(any("rounding" in row for row in metrics_of(self.folder / "free")))

    def test_equal_layers_in_a_uniform_export(self):
        config = self.config("uniform", prune={"ranking": "local", "target": 0.4, "iterations": 2, "protect": {"last_layers": 0},
                                               "attention_unit": "equal_per_group"},
                             export=[{"format": "uniform", "path": "export/uniform"}])
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        facts = json.loads((run_dir / "export/uniform/config.json").read_text())
        self.assertEqual(facts["intermediate_size"], 16)  # floor(24 x 0.4) = 9 are two blocks
        self.succeeds("verify", run_dir / "export/uniform", "--deep")

    def test_multiples_that_the_model_has_not_are_refused(self):
        config = self.config("refused")
        result = run("run", config, "--run-dir", self.folder / "run", "--set", "prune.width_multiple=7")
        self.assertEqual(result.code, 78, result)
        self.assertIn("prune.width_multiple is 7", result.err)
        self.assertIn("give a divisor of 24: 8 is the largest power of two", result.err)
        self.assertNotIn("Please report", result.err)


if __name__ == "__main__":
    main()
