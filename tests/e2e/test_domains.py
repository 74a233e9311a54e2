"""Several domains in one run: weights that follow the losses, draws that go on through a file, and how much of what the
domains alone would remove is the same; undisturbed, and killed and continued on another layout.
"""

import json
import math
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import ITERATIONS, Interrupted
from workbench import main, metrics_of, plan_of

DOMAINS = [
    {"name": "a", "tokens": "a.h5", "sequences": 4},
    {"name": "b", "tokens": "b.h5", "sequences": 3, "weight": 2.0},
]


def close(one, other):
    return math.isclose(one, other, rel_tol=1e-9)


class Follows(Interrupted):
    """What the tests below share; has none of its own."""

    def setUp(self):
        super().setUp()
        self.gold_dir = self.class_folder / "gold"

    def is_killed_and_continues(self, point):
        """The same weights, draws and overlap on another layout, after a SIGKILL in the third iteration."""
        run_dir = self.folder / "killed"
        self.assertEqual(self.start(run_dir, 2, 2, f"point={point};iter=3;nth=1;rank=0;action=kill9").wait().code, 137)
        self.continues_to_gold(run_dir, 1, 2)
        for row, gold in zip(metrics_of(run_dir), metrics_of(self.gold_dir), strict=True):
            for name, weight in gold.get("weights", {}).items():
                self.assertTrue(close(row["weights"][name], weight), (row, gold))
        self.assertEqual(json.loads((run_dir / "overlap.json").read_text()), json.loads((self.gold_dir / "overlap.json").read_text()))

    def removed_alone(self, domain, iteration):
        """What a run on this domain alone removes in an iteration from where the gold run stood: sets of (layer, unit)."""
        config = json.loads(self.config.read_text())
        config["calibration"].update(domains=[d for d in DOMAINS if d["name"] == domain], overlap=[], adapt="none")
        config["prune"].update(iterations=1, target=config["prune"]["target"] * iteration / ITERATIONS)
        config["evaluation"], config["export"] = {}, []
        path = self.bench.folder / f"alone-{domain}.yaml"
        path.write_text(json.dumps(config))
        self.succeeds("run", path, "--run-dir", self.folder / domain)
        arrays = plan_of(self.folder / domain / "plan.h5")[1]
        return {kind: {(int(layer), int(unit)) for layer, unit in np.argwhere(arrays[f"{kind}/removed_at"] == 1)}
                for kind in ("attention", "mlp")}

    def is_overlap_of_the_first_iteration(self):
        found = json.loads((self.gold_dir / "overlap.json").read_text())
        self.assertEqual((found["schema"], found["domains"]), (1, ["a", "b"]))
        self.assertEqual([one["iteration"] for one in found["iterations"]], [1, 3])
        alone = [self.removed_alone(name, 1) for name in ("a", "b")]
        self.assertGreater(len(alone[0]["mlp"]), 2)
        for kind in ("attention", "mlp"):
            shown = found["iterations"][0][kind]
            self.assertEqual(shown["all"], self.jaccard([one[kind] for one in alone]), kind)
            for layer in shown["layers"]:
                here = [{unit for unit in one[kind] if unit[0] == layer["layer"]} for one in alone]
                self.assertEqual(layer["jaccard"], self.jaccard(here), (kind, layer))

    @staticmethod
    def jaccard(sets):
        return [[len(a & b) / len(a | b) if a | b else None for b in sets] for a in sets]


class Gates(Follows):
    change = {"importance": {"criterion": "taylor_gate", "normalization": "param_mean"},
              "calibration": {"domains": DOMAINS, "adapt": "loss_gap", "resample": True, "overlap": [1, 3]}}

    def test_weights_follow_the_losses(self):
        rows = metrics_of(self.gold_dir)[1:]
        first = rows[0]["loss"]
        self.assertEqual(rows[0]["weights"], {"a": 1.0, "b": 2.0}, "nothing is known before the first pass")
        for before, row in zip(rows, rows[1:]):
            factor = {name: max(1.0, math.exp(before["loss"][name] - first[name])) for name in first}
            grown = {"a": factor["a"], "b": 2.0 * factor["b"]}
            for name, weight in grown.items():
                self.assertTrue(close(row["weights"][name], weight * 3.0 / sum(grown.values())), (row, grown))
        self.assertNotEqual(rows[-1]["weights"], rows[0]["weights"], "the losses rose alike: nothing was seen here")

    def test_killed_between_the_ranking_and_the_commit(self):
        self.is_killed_and_continues("slice.enter")

    def test_overlap_is_that_of_runs_on_one_domain(self):
        self.is_overlap_of_the_first_iteration()


class Gradients(Follows):
    """Sums of gradients do not tell domains apart: the overlap takes a pass of its own, which changes nothing else."""

    change = {"calibration": {"domains": DOMAINS, "overlap": [1, 3]}}

    def test_overlap_is_that_of_runs_on_one_domain(self):
        self.is_overlap_of_the_first_iteration()

    def test_changes_nothing_else_and_may_change_when_a_run_is_resumed(self):
        run_dir = self.folder / "without"
        self.assertEqual(self.start(run_dir, 1, 1, "point=save.enter;iter=2;action=kill9", "--set", "calibration.overlap=[]").wait().code, 137)
        self.continues_to_gold(run_dir, 2, 1)
        self.assertEqual([one["iteration"] for one in json.loads((run_dir / "overlap.json").read_text())["iterations"]], [3])

    def test_a_damaged_file_is_replaced(self):
        run_dir = self.folder / "damaged"
        self.assertEqual(self.start(run_dir, 1, 1, "point=save.enter;iter=2;action=kill9").wait().code, 137)
        (run_dir / "overlap.json").write_text('{"schema": 1, "domains": ["a", "b"], "iterations": [7, {"iteration": "x"}]')
        self.continues_to_gold(run_dir, 1, 1)
        self.assertEqual([one["iteration"] for one in json.loads((run_dir / "overlap.json").read_text())["iterations"]], [3])


if __name__ == "__main__":
    main()
