"""Query heads that fall together (attention_unit equal_per_group), and the smaller models that one run holds."""

import csv
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, digest_of, main, make_model, merged, metrics_of, plan_of, run

NO_EVALUATION = {"evaluation": {"perplexity": []}}
EQUAL = {"prune": {"attention_unit": "equal_per_group", "protect": {"last_layers": 0}}}
MODEL = {"heads": 6, "kv_heads": 2}
UNITS = 4 * (6 + 24)


def lost(plan, kv_heads=2):
    """[layers, groups]: query heads that each group lost."""
    gone = plan["attention/removed_at"] >= 0
    return gone.reshape(len(gone), kv_heads, -1).sum(axis=2)


class EqualPerGroup(Case):
    model = MODEL

    def config(self, name, **change):
        return self.bench.config(name, **merged(merged(EQUAL, NO_EVALUATION), change))

    def require_whole(self, plan):
        """Every group lost as much, and the two heads of a bundle fell behind one another in one iteration."""
        counts = lost(plan)
        np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
        order, removed_at = plan["attention/order"], plan["attention/removed_at"]
        for layer, count in enumerate(counts[:, 0]):
            places = np.argsort(order[layer])[6 - 2 * count:]
            self.assertEqual({int(head) // 3 for head in places[:2]} if count else {0, 1}, {0, 1})
            np.testing.assert_array_equal(order[layer][places[1::2]], order[layer][places[::2]] + 1)
            np.testing.assert_array_equal(removed_at[layer][places[1::2]], removed_at[layer][places[::2]])

    def require_counts(self, plan, counts):
        np.testing.assert_array_equal(lost(plan), counts)

    def test_every_ranking_and_measure(self):
        for ranking in ("global", "global_by_kind", "local"):
            for measure in ("structures", "total_parameters"):
                with self.subTest(ranking=ranking, measure=measure):
                    name = f"{ranking}-{measure}"
                    config = self.config(name, prune={"ranking": ranking, "measure": measure, "target": 0.4, "iterations": 3})
                    run_dir = self.folder / name
                    self.succeeds("run", config, "--run-dir", run_dir)
                    _, plan = plan_of(run_dir / "plan.h5")
                    self.require_whole(plan)
                    self.assertGreater(lost(plan).sum(), 0)
                    for number, sparsity in enumerate((0.15, 0.3)):
                        out = self.folder / f"{name}-{number}"
                        self.succeeds("export", run_dir, "--sparsity", sparsity, "--out", out)
                        _, part = plan_of(out / "espalier_plan.h5")
                        self.require_whole(part)
                        self.assertTrue(((part["attention/removed_at"] < 0) | (plan["attention/removed_at"] >= 0)).all())

    def test_layouts_resume_and_a_run_on_the_export(self):
        change = {"prune": {"target": 0.5, "iterations": 4}, "export": [{"format": "exact", "path": "export/exact"}]}
        config = self.config("layouts", **change)
        found = set()
        for tensor, data in ((1, 1), (2, 1), (3, 1), (2, 2)):
            run_dir = self.folder / f"{tensor}x{data}"
            self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
            found.add(digest_of(run_dir))
        killed = self.folder / "killed"
        result = run("run", config, "--run-dir", killed, extra={"ESPALIER_FAULT": "point=forward.enter;iter=3;action=kill9"})
        self.assertEqual(result.code, 137, result)
        self.succeeds("resume", killed, "--tensor", 2, ranks=2)
        found.add(digest_of(killed))
        self.assertEqual(len(found), 1)
        self.succeeds("verify", killed)
        # Further from the export, with its plan and without.
        on = self.config("on", model={"path": str(killed / "export/exact")}, prune={"target": 0.65, "iterations": 1})
        self.succeeds("run", on, "--run-dir", self.folder / "on")
        _, plan = plan_of(self.folder / "on/plan.h5")
        self.require_whole(plan)
        (killed / "export/exact/espalier_plan.h5").unlink()
        self.succeeds("run", on, "--run-dir", self.folder / "bare")
        _, bare = plan_of(self.folder / "bare/plan.h5")
        # Without its plan the export's heads are numbered by their place in each group.
        self.require_counts(bare, lost(plan))
        result = run("run", on, "--run-dir", self.folder / "no", "--set", "prune.attention_unit=kv_group")
        self.assertEqual(result.code, 78, result)

    def test_local_ranking_keeps_layers_uniform(self):
        config = self.config("local", prune={"ranking": "local", "target": 0.4, "iterations": 2},
                             export=[{"format": "uniform", "path": "export/uniform"}])
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        facts = json.loads((run_dir / "export/uniform/config.json").read_text())
        self.assertEqual((facts["num_attention_heads"], facts["num_key_value_heads"]), (4, 2))
        self.assertEqual(facts["intermediate_size"], 24 - int(24 * 0.4 + 1e-9))
        self.assertNotIn("auto_map", facts)
        self.succeeds("verify", run_dir / "export/uniform", "--deep")

    def test_heads_of_their_own_are_refused(self):
        make_model(self.folder / "mha", kv_heads=4)
        config = self.config("mha", model={"path": str(self.folder / "mha")})
        result = run("run", config, "--run-dir", self.folder / "run")
        self.assertEqual(result.code, 78, result)
        self.assertIn("query_head", result.err)
        self.assertFalse((self.folder / "run/ckpt/iter-000001").exists())


class Family(Case):
    """One run, and the models that it holds."""

    model = MODEL

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_dir = cls.class_folder / "run"
        result = run("run", cls.bench.config(evaluation={"every": 4}, prune={"target": 0.5}), "--run-dir", cls.run_dir)
        if result.code != 0:
            raise AssertionError(result)

    def fails(self, code, word, *arguments):
        result = run(*arguments)
        self.assertEqual(result.code, code, result)
        self.assertIn(word, result.err, result)
        self.assertNotIn("Please report", result.err)

    def test_the_curve_is_that_of_the_exports(self):
        sparsities = (0.1, 0.25, 0.4, 0.5)
        exports = [self.folder / f"export-{s}" for s in sparsities]
        for sparsity, export in zip(sparsities, exports, strict=True):
            self.succeeds("export", self.run_dir, "--sparsity", sparsity, "--out", export)
        for tensor, data, dtype in ((1, 1, "float64"), (2, 2, "float32"), (3, 1, "float64")):
            name, ranks = f"{tensor}x{data}", tensor * data
            options = ("--tensor", tensor, "--set", f"model.dtype={dtype}")
            out = self.folder / f"{name}.json"
            self.succeeds("eval", self.run_dir, "--sparsity", "0.4,0.1,0.25", "--sparsity", 0.5, "--out", out, *options,
                          ranks=ranks)
            curve = json.loads(out.read_text())
            self.assertTrue(curve["complete"])
            self.assertEqual([p["sparsity"] for p in curve["points"]], list(sparsities))
            rows = list(csv.DictReader(out.with_suffix(".csv").open()))
            for point, row, export in zip(curve["points"], rows, exports, strict=True):
                single = self.folder / f"{name}-{point['sparsity']}.json"
                self.succeeds("eval", self.run_dir, "--model", export, "--plan", export / "espalier_plan.h5", "--out", single,
                              *options, ranks=ranks)
                alone = json.loads(single.read_text())
                self.assertEqual(point["results"], alone["results"], "to the bit")
                self.assertEqual(point["perplexity"], alone["perplexity"])
                self.assertEqual(point["plan_digest"], alone["plan_digest"])
                self.assertLessEqual(point["sparsity_structures"], point["sparsity"] + 1e-12)
                for result in point["results"]:
                    column = f"{result['task']}.{result['metric']}"
                    self.assertEqual(float(row[column]), result["value"])
                    self.assertEqual(row[column + "_stderr"], "" if result["stderr"] is None else repr(result["stderr"]))
                for column in ("sparsity", "sparsity_structures", "sparsity_parameters", "sparsity_total_parameters", "parameters"):
                    self.assertEqual(float(row[column]), point[column])
        last = metrics_of(self.run_dir)[-1]
        self.assertEqual(curve["points"][-1]["sparsity_structures"], last["sparsity_structures"])

    def test_the_curve_in_parameters(self):
        """The plans that `export --measure` writes, whatever the run's own measure is."""
        sparsities = (0.08, 0.2, 0.33)
        for measure in ("parameters", "total_parameters"):
            out = self.folder / f"{measure}.json"
            self.succeeds("eval", self.run_dir, "--sparsity", ",".join(map(str, sparsities)), "--measure", measure, "--out", out)
            curve = json.loads(out.read_text())
            self.assertEqual(curve["measure"], measure)
            for sparsity, point in zip(sparsities, curve["points"], strict=True):
                export = self.folder / f"{measure}-{sparsity}"
                self.succeeds("export", self.run_dir, "--sparsity", sparsity, "--measure", measure, "--out", export)
                self.assertEqual(plan_of(export / "espalier_plan.h5")[0], point["plan_digest"])
                self.assertLessEqual(point[f"sparsity_{measure}"], sparsity)
                counts = json.loads(self.succeeds("inspect", export, "--json").out)
                name = "decoder_parameters" if measure == "parameters" else "parameters"
                dense = counts["dense"][name]
                self.assertEqual(point[f"sparsity_{measure}"], (dense - counts[name]) / dense)
        self.assertEqual(len({point["plan_digest"] for point in curve["points"]}), len(sparsities))

    def test_a_run_is_its_own_configuration(self):
        out = self.folder / "eval.json"
        self.succeeds("eval", self.run_dir, "--out", out)
        facts = json.loads(out.read_text())
        self.assertEqual(facts["plan_digest"], digest_of(self.run_dir))
        self.assertEqual(facts["perplexity"]["held"]["perplexity"], metrics_of(self.run_dir)[-1]["perplexity"]["held"])

    def test_what_cannot_be_asked(self):
        config = self.bench.config("other")
        eval_run = ["eval", self.run_dir]
        self.fails(78, "it holds those from 0.000000 to 0.500000 of the structures", *eval_run, "--sparsity", "0.1,0.8")
        self.fails(64, "espalier eval RUN --sparsity", "eval", config, "--sparsity", "0.1")
        self.fails(64, "--measure without --sparsity", *eval_run, "--measure", "parameters")
        self.fails(64, "--sparsity excludes", *eval_run, "--sparsity", "0.1", "--run-dir", self.run_dir)
        self.fails(64, "does not end in .json", *eval_run, "--sparsity", "0.1", "--out", self.folder / "curve.csv")
        (self.folder / "curve.csv").write_text("mine")
        self.fails(73, "curve.csv", *eval_run, "--sparsity", "0.1", "--out", self.folder / "curve.json")
        self.assertEqual((self.folder / "curve.csv").read_text(), "mine")
        self.assertFalse((self.folder / "curve.json").exists())
        self.fails(64, "is not a ratio", *eval_run, "--sparsity", "0.1,x")

    def test_stopped_on_the_way_it_keeps_what_was_measured(self):
        out = self.folder / "curve.json"
        result = run("eval", self.run_dir, "--sparsity", "0.1,0.2,0.3", "--out", out,
                     extra={"ESPALIER_FAULT": "point=slice.enter;nth=3;action=kill9"})
        self.assertEqual(result.code, 137, result)
        curve = json.loads(out.read_text())
        self.assertFalse(curve["complete"])
        self.assertEqual([point["sparsity"] for point in curve["points"]], [0.1, 0.2])
        self.assertEqual(len(out.with_suffix(".csv").read_text().splitlines()), 3)

    def test_inspect(self):
        facts = json.loads(self.succeeds("inspect", self.run_dir, "--json").out)
        sparsities = [row["sparsity"] for row in facts["sizes"]]
        self.assertEqual([round(s, 4) for s in sparsities], [0, 0.1, 0.2, 0.3, 0.4, 0.5])
        self.assertEqual(facts["sizes"][0]["heads"], [6, 6])
        self.assertEqual(facts["sizes"][0]["tensor_parallel"], [2])
        self.assertEqual(facts["sizes"][0]["channel_multiple"], 8)
        self.assertTrue(facts["sizes"][0]["uniform"])
        for row in facts["sizes"]:
            out = self.folder / f"export-{row['sparsity']}"
            self.succeeds("export", self.run_dir, "--sparsity", row["sparsity"], "--out", out)
            layers = json.loads((out / "config.json").read_text())["espalier"]["layers"]
            heads, kv_heads = [sum(x["groups"]) for x in layers], [len(x["groups"]) for x in layers]
            channels = [x["channels"] for x in layers]
            for key, values in (("heads", heads), ("kv_heads", kv_heads), ("channels", channels)):
                self.assertEqual(row[key], [min(values), max(values)])
            whole = all(len(set(x["groups"])) <= 1 for x in layers)
            self.assertEqual(row["whole_groups"], whole)
            self.assertEqual(row["uniform"], whole and all(len(set(v)) == 1 and min(v) > 0 for v in (heads, kv_heads, channels)))
            self.assertEqual(row["tensor_parallel"],
                             [t for t in (2, 4, 8) if whole and all(v % t == 0 for v in kv_heads + channels)])
            seen = json.loads(self.succeeds("inspect", out, "--json").out)
            self.assertEqual(seen["serving"], {key: row[key] for key in seen["serving"]})
            self.assertEqual(seen["sizes"], [])
        plan = self.succeeds("inspect", self.run_dir / "plan.h5", "--model", self.bench.model, "--json")
        self.assertEqual(json.loads(plan.out)["plan_digest"], digest_of(self.run_dir))
        self.fails(64, "--model", "inspect", self.run_dir / "plan.h5")
        self.assertIn("tensor-parallel", self.succeeds("inspect", self.run_dir).out)

    def test_inspect_finds_round_sizes_of_uniform_runs(self):
        make_model(self.folder / "wide", kv_heads=2, heads=4, channels=640)
        config = self.bench.config("wide", **merged(EQUAL, NO_EVALUATION), model={"path": str(self.folder / "wide")})
        arguments = ("--set", "prune.ranking=local", "--set", "prune.target=0.5", "--set", "prune.iterations=1")
        self.succeeds("run", config, "--run-dir", self.folder / "run", *arguments)
        rows = json.loads(self.succeeds("inspect", self.folder / "run", "--json").out)["sizes"]
        # 640, then 576 (0.1), 512 (0.2), 448 (0.3), 384 (0.4), 320 (0.5).
        self.assertEqual([row["channels"] for row in rows], [[n, n] for n in (640, 576, 512, 448, 384, 320)])
        self.assertTrue(all(row["uniform"] and row["channel_multiple"] >= 64 for row in rows), rows)


if __name__ == "__main__":
    main()
