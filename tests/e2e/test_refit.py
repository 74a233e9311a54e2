"""Refitted matrices in every export, at smaller sparsities, on one rank and several; what is said about them."""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import numpy as np
import workbench
from safetensors.numpy import load_file
from workbench import main, run

REFIT = {
    "prune": {"target": 0.45, "iterations": 2, "ranking": "local", "attention_unit": "equal_per_group",
              "protect": {"first_layers": 0, "last_layers": 0}},
    "refit": {"enabled": True},
    "export": [{"format": "exact", "path": "export/exact"}, {"format": "uniform", "path": "export/uniform"}],
}


MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTPUTS = {"attention": "o_proj", "mlp": "down_proj"}


def tensors_of(path):
    return load_file(pathlib.Path(path) / "model.safetensors")


def is_refittable(name):
    return name.endswith(("o_proj.weight", "down_proj.weight"))


class Refit(workbench.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        workbench.write_tokens(cls.class_folder / "bench/a.h5", rows=12, seed=1)
        cls.config = cls.bench.config("refit", **REFIT)
        cls.first = cls.class_folder / "first"
        result = run("run", cls.config, "--run-dir", cls.first)
        assert result.code == 0, result
        cls.log = result.err
        cls.record = json.loads((cls.first / "refit.json").read_text())

    def perplexity(self, model):
        out = self.folder / "eval.json"
        out.unlink(missing_ok=True)
        self.succeeds("eval", self.config, "--model", model, "--out", out)
        return json.loads(out.read_text())["perplexity"]["held"]["perplexity"]

    def test_every_form_holds_the_refitted_matrices(self):
        exact, uniform = tensors_of(self.first / "export/exact"), tensors_of(self.first / "export/uniform")
        self.succeeds("export", self.first, "--no-refit", "--out", self.folder / "plain")
        plain = tensors_of(self.folder / "plain")
        changed = {name for name in plain if not np.array_equal(plain[name], exact[name])}
        self.assertGreater(len(changed), 0)
        self.assertTrue(all(is_refittable(name) for name in changed), changed)
        self.assertEqual(len(changed), self.record["matrices"]["refitted"])
        for name, values in exact.items():
            self.assertTrue(np.array_equal(values, uniform[name]), name)
        for form in ("exact", "uniform"):
            # The matrices are stored in float32, and read again from there.
            self.assertAlmostEqual(self.perplexity(self.first / "export" / form) / self.record["perplexity"]["held"], 1, delta=1e-9)
        self.succeeds("verify", self.first / "export/exact", "--deep")

    def test_what_is_said(self):
        card = (self.first / "export/exact/README.md").read_text()
        self.assertNotIn("bit for bit", card)
        self.assertIn("## Refitted matrices", card)
        self.assertEqual(card.count(" | o_proj | ") + card.count(" | down_proj | "), self.record["matrices"]["refitted"])
        provenance = json.loads((self.first / "export/exact/provenance.json").read_text())
        self.assertEqual(provenance["refit"]["key"], self.record["key"])
        self.assertIn("were among those of the scores", self.log)
        verified = self.succeeds("verify", self.first)
        self.assertIn("refit.json: ", verified.text)

    def test_few_tokens_are_told_and_guarded(self):
        workbench.write_tokens(self.bench.folder / "few.h5", rows=2, length=4, seed=7)
        config = self.bench.config("few", **workbench.merged(REFIT, {
            "refit": {"domains": [{"name": "few", "tokens": "few.h5"}]}, "export": []}))
        result = self.succeeds("run", config, "--run-dir", self.folder / "run")
        self.assertIn("matrices have fewer than 10 tokens for each input that they keep (8 tokens", result.err)
        record = json.loads((self.folder / "run/refit.json").read_text())
        self.assertEqual(record["tokens"], 8)
        self.assertGreater(record["matrices"]["dense"], 0)
        for half in record["halves"]:
            if half["outcome"] == "dense":
                self.assertGreaterEqual(half["error_after"], half["error_before"])

    def test_beside_the_biases_of_what_fell(self):
        """Matrices are solved with the biases in place; the export is the model that was evaluated."""
        config = self.bench.config("biases", **workbench.merged(REFIT, {
            "importance": {"criterion": "flap", "normalization": "none"}, "prune": {"compensation": "mean"},
            "export": [{"format": "exact", "path": "export/exact"}]}))
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        record = json.loads((run_dir / "refit.json").read_text())
        self.assertGreater(record["matrices"]["refitted"], 0)
        exact = run_dir / "export/exact"
        self.assertAlmostEqual(self.perplexity(exact) / record["perplexity"]["held"], 1, delta=1e-9)
        self.succeeds("export", run_dir, "--no-refit", "--out", self.folder / "plain")
        refitted, plain = tensors_of(exact), tensors_of(self.folder / "plain")
        biases = [name for name in plain if name.endswith(("o_proj.bias", "down_proj.bias"))]
        self.assertTrue(any(plain[name].any() for name in biases))
        for name in biases:
            np.testing.assert_array_equal(refitted[name], plain[name])
        changed = {name for name in plain if not np.array_equal(plain[name], refitted[name])}
        self.assertEqual(len(changed), record["matrices"]["refitted"])

    def test_a_smaller_plan_on_any_number_of_ranks(self):
        one, two = self.folder / "one", self.folder / "two"
        self.succeeds("export", self.first, "--sparsity", 0.25, "--out", one)
        self.succeeds("export", self.first, "--sparsity", 0.25, "--refit", "--tensor", 2, "--out", two, ranks=2)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["one", "two"])
        for name, values in tensors_of(one).items():
            np.testing.assert_allclose(tensors_of(two)[name], values, rtol=0, atol=2e-6 * np.abs(values).max(), err_msg=name)
        curve = self.folder / "curve.json"
        self.succeeds("eval", self.first, "--sparsity", "0.25,0.4", "--refit", "--out", curve)
        points = json.loads(curve.read_text())["points"]
        self.assertAlmostEqual(points[0]["perplexity"]["held"]["perplexity"] / self.perplexity(one), 1, delta=1e-9)
        self.assertGreater(points[1]["refit"]["matrices"]["refitted"], 0)

    def test_that_of_the_run_is_taken_for_its_own_plan(self):
        out = self.folder / "again"
        result = self.succeeds("export", self.first, "--out", out)
        self.assertIn("that of the run is of this plan", result.err)
        self.assertEqual(workbench.weights_of(out), workbench.weights_of(self.first / "export/exact"))

    def test_what_cannot_be(self):
        for arguments, words in (
            (["export", self.first, "--refit", "--no-refit", "--out", self.folder / "x"], "exclude each other"),
            (["export", self.first / "plan.h5", "--model", self.bench.model, "--refit", "--out", self.folder / "x"],
             "a plan file names no data"),
            (["eval", self.first, "--refit"], "--refit without --sparsity"),
        ):
            result = run(*arguments)
            self.assertEqual(result.code, 64, result)
            self.assertIn(words, " ".join(result.err.split()))


class EveryMatrix(workbench.Case):
    def test_the_number_of_tokens_decides(self):
        """64 for each hidden input; what auto came to is the same refit as that choice itself."""
        hidden = json.loads((self.bench.model / "config.json").read_text())["hidden_size"]
        workbench.write_tokens(self.bench.folder / "many.h5", rows=65, length=hidden, seed=7)
        for name, rows, other, came_to in (("few", 63, "all", "outputs"), ("many", 64, "outputs", "all")):
            with self.subTest(name):
                config = self.bench.config(name, **workbench.merged(REFIT, {
                    "refit": {"domains": [{"name": "many", "tokens": "many.h5"}], "sequences": rows, "ridge": 0.1}, "export": []}))
                run_dir = self.folder / name
                self.succeeds("run", config, "--run-dir", run_dir)
                record = json.loads((run_dir / "refit.json").read_text())
                self.assertEqual((record["tokens"], record["settings"]["matrices"]), (rows * hidden, came_to))
                self.assertEqual(any("projections" in half for half in record["halves"]), came_to == "all")
                said = self.succeeds("resume", run_dir, "--set", f"refit.matrices={came_to}").err
                self.assertIn("refit    is there already", said)
                self.succeeds("resume", run_dir, "--set", f"refit.matrices={other}")
                self.assertEqual(json.loads((run_dir / "refit.json").read_text())["settings"]["matrices"], other)

    def test_all_that_is_solved_is_exported_and_told(self):
        workbench.write_tokens(self.bench.folder / "a.h5", rows=12, seed=1)
        config = self.bench.config("every", **workbench.merged(REFIT, {"refit": {"matrices": "all"}}))
        run_dir = self.folder / "run"
        text = self.succeeds("run", config, "--run-dir", run_dir).out
        record = json.loads((run_dir / "refit.json").read_text())
        each = {(half["layer"], name): facts for half in record["halves"]
                for name, facts in (*half.get("projections", {}).items(), (OUTPUTS[half["kind"]], half))}
        refitted = {place for place, facts in each.items() if facts["outcome"] == "refitted"}
        self.assertEqual(len(each), 4 * 7 - 3, "all but q, k and v of the first layer")
        self.assertEqual(record["matrices"]["refitted"], len(refitted))
        self.assertLessEqual({"q_proj", "v_proj", "gate_proj", "up_proj"}, {name for _, name in refitted})
        self.assertEqual(record["settings"]["matrices"], "all")
        self.assertIn(f"refit         {len(refitted)} of {len(each)} matrices refitted", text)
        self.succeeds("export", run_dir, "--no-refit", "--out", self.folder / "plain")
        plain = tensors_of(self.folder / "plain")
        for form in ("exact", "uniform"):
            found = tensors_of(run_dir / "export" / form)
            changed = {name for name in plain if not np.array_equal(plain[name], found[name])}
            self.assertEqual({(int(name.split(".")[2]), name.split(".")[-2]) for name in changed}, refitted)
            out = self.folder / f"{form}.json"
            self.succeeds("eval", config, "--model", run_dir / "export" / form, "--out", out)
            perplexity = json.loads(out.read_text())["perplexity"]["held"]["perplexity"]
            self.assertAlmostEqual(perplexity / record["perplexity"]["held"], 1, delta=1e-9)
        card = (run_dir / "export/exact/README.md").read_text()
        names = [name for name in MODULES if any(name == module for _, module in refitted)]
        self.assertIn(f"{len(refitted)} matrices of {', '.join(names[:-1])} and {names[-1]} were then refitted", card)
        for layer, name in refitted:
            self.assertIn(f"| {layer} | {name} | {each[layer, name]['width']} |", card)
        self.succeeds("verify", run_dir)


class Told(workbench.Case):
    """What a run with a refit says at its end, and what is said of it later."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        workbench.write_options(cls.bench.folder / "options.h5")
        # Rows so short that the guard has something to keep.
        workbench.write_tokens(cls.bench.folder / "few.h5", rows=2, length=4, seed=7)
        change = {"evaluation": {"perplexity": [{"name": "held", "tokens": "eval.h5"}, {"name": "other", "tokens": "a.h5"}],
                                 "multiple_choice": [{"name": "items", "tokens": "options.h5"}]},
                  "refit": {"domains": [{"name": "few", "tokens": "few.h5"}]}}
        cls.config = cls.bench.config("told", **workbench.merged(REFIT, change))
        cls.run_dir = cls.class_folder / "run"
        result = run("--log-format", "json", "run", cls.config, "--run-dir", cls.run_dir)
        assert result.code == 0, result
        cls.facts = json.loads(result.err.splitlines()[-1])
        cls.record = json.loads((cls.run_dir / "refit.json").read_text())
        cls.rows = workbench.metrics_of(cls.run_dir)

    def kept_and_widths(self):
        halves = [half for half in self.record["halves"] if half["outcome"] != "empty"]
        kept = sum(half["outcome"] in ("dense", "obs") for half in halves)
        return halves, kept, [half["tokens_per_width"] for half in halves]

    def test_as_json(self):
        _, kept, widths = self.kept_and_widths()
        self.assertGreater(kept, 0)
        self.assertEqual(self.facts["refit"], {"refitted": self.record["matrices"]["refitted"], "kept": kept,
                                               "least_tokens_per_width": min(widths), "most_tokens_per_width": max(widths)})
        first, last = self.rows[0], self.rows[-1]
        means = []
        for name in ("held", "other"):
            steps = [part["perplexity"][name] for part in (first, last, self.record)]
            found = self.facts["perplexity"][name]
            self.assertEqual([found[key] for key in ("before", "after", "refitted")], steps)
            means.append(steps)
        for key, values in zip(("before", "after", "refitted"), zip(*means), strict=True):
            self.assertAlmostEqual(self.facts["perplexity_geometric_mean"][key], (values[0] * values[1]) ** 0.5, places=9)
        steps = [part["multiple_choice"]["items"]["acc"] for part in (first, last, self.record)]
        found = self.facts["right"]["items"]["acc"]
        self.assertEqual([found[key] for key in ("before", "after", "refitted")], steps)
        seconds = self.record["seconds"]
        self.assertLessEqual({"refit", "evaluate"}, set(seconds))
        self.assertTrue(all(value >= 0 for value in seconds.values()))
        self.assertAlmostEqual(self.facts["seconds_in"]["refit"], seconds["refit"])
        evaluated = seconds["evaluate"] + sum(row["seconds"].get("evaluate", 0) for row in self.rows)
        self.assertAlmostEqual(self.facts["seconds_in"]["evaluate"], evaluated)

    def test_as_text(self):
        """A run that is done says it again."""
        text = self.succeeds("resume", self.run_dir).out
        halves, kept, widths = self.kept_and_widths()
        refitted = self.record["matrices"]["refitted"]
        self.assertIn(f"\n  refit         {refitted} of {len(halves)} matrices refitted, {kept} kept by the guard; "
                      f"{min(widths):.1f} to {max(widths):.1f} tokens for each input left\n", text)
        first, last = self.rows[0], self.rows[-1]
        for name in ("held", "other"):
            dense, pruned, after = (part["perplexity"][name] for part in (first, last, self.record))
            self.assertRegex(text, rf"\n  perplexity    {name:<14} {dense:.3f} -> {pruned:.3f} -> {after:.3f} refitted   \(windows of 12 tokens\)\n")
        mean = self.facts["perplexity_geometric_mean"]
        self.assertIn(f"\n  perplexity    geometric mean {mean['before']:.3f} -> {mean['after']:.3f} -> {mean['refitted']:.3f} refitted\n", text)
        self.assertRegex(text, r"\n  right         items +0\.\d+ -> 0\.\d+ -> 0\.\d+ refitted   \(acc\)\n")
        self.assertRegex(text, r"\n  seconds +.* refit \d+\.\d")

    def test_status(self):
        line = self.succeeds("status", self.run_dir).out
        halves, _, _ = self.kept_and_widths()
        mean = self.facts["perplexity_geometric_mean"]
        self.assertIn(f"removed, {self.record['matrices']['refitted']} of {len(halves)} matrices refitted "
                      f"(perplexity {mean['after']:.3f} -> {mean['refitted']:.3f}), export ", line)

    def test_a_record_that_cannot_be_read_fails_nothing(self):
        run_dir = pathlib.Path(shutil.copytree(self.run_dir, self.folder / "run"))
        for change in ({"halves": "none"}, {"perplexity": {"held": "low"}}, {"halves": [{}]}):
            (run_dir / "refit.json").write_text(json.dumps({**self.record, **change}))
            line = self.succeeds("status", run_dir).out
            self.assertNotIn("refitted", line)
            self.assertIn("finished: ", line)

    def test_a_run_without_one_says_nothing_of_it(self):
        config = self.bench.config("without", **{**REFIT, "refit": {"enabled": False}, "export": []})
        result = self.succeeds("run", config, "--run-dir", self.folder / "run")
        self.assertNotIn("refit", result.out.replace(str(self.folder), ""))
        self.assertNotIn("refit", self.succeeds("status", self.folder / "run").out.replace(str(self.folder), ""))


class Worse(workbench.Case):
    def test_a_worse_model_is_told(self):
        """Fitted on one token over and over, matrices pass their guards and the model is of less use for text."""
        from tokenizers import Tokenizer

        model = workbench.ROOT / "tests/models/tri-domain-qwen2"
        lines = (model / "text/prose.calibration.jsonl").read_text().splitlines()
        ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode("\n".join(json.loads(line)["text"] for line in lines)).ids
        rows = np.array(ids[: 100 * 64]).reshape(100, 64)
        for name, part in (("text", rows[:20]), ("others", rows[20:80]), ("held", rows[80:]), ("same", np.full((60, 64), rows[0, 0]))):
            workbench.write_tokens(self.bench.folder / f"{name}.h5", vocab=1024, tokens=part)
        for name in ("others", "same"):
            config = self.bench.config(name, **workbench.merged(REFIT, {
                "model": {"path": str(model), "dtype": "float32"}, "prune": {"iterations": 1, "target": 0.3},
                "calibration": {"domains": [{"name": "text", "tokens": "text.h5"}], "micro_batch_tokens": 1024},
                "refit": {"domains": [{"name": "text", "tokens": f"{name}.h5"}]},
                "evaluation": {"perplexity": [{"name": "held", "tokens": "held.h5"}]}, "export": []}))
            said = self.succeeds("run", config, "--run-dir", self.folder / name).err
            record = json.loads((self.folder / name / "refit.json").read_text())
            before, after = record["perplexity_before"]["held"], record["perplexity"]["held"]
            self.assertEqual(after > 1.02 * before, name == "same", (before, after))
            self.assertEqual("refit    made the model worse on held, " in said, name == "same", said)


if __name__ == "__main__":
    main()
