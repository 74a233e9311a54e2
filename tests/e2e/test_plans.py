"""What a run makes of its plan: commits that stand, exports that are what the report says, smaller plans, and runs on
exports."""

import json
import pathlib
import re
import shutil
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, digest_of, main, merged, metrics_of, plan_of, run, status_of

EXACT = {"format": "exact", "path": "export/exact"}
NO_EVALUATION = {"evaluation": {"perplexity": []}}
UNITS = 4 * (4 + 24)  # of the bench's model


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def digest_in(export):
    return json.loads((export / "config.json").read_text())["espalier_plan_digest"]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Base(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config(**NO_EVALUATION, export=[EXACT], checkpoint={"keep_last": 4})
        cls.gold = cls.class_folder / "gold"
        result = run("run", cls.config, "--run-dir", cls.gold)
        if result.code != 0:
            raise AssertionError(result)

    def copy(self, name="run"):
        """The finished run, copied: it is the same run in another place."""
        run_dir = self.folder / name
        shutil.copytree(self.gold, run_dir)
        return run_dir

    def fails(self, code, words, *arguments):
        result = run(*arguments)
        self.assertEqual(result.code, code, result)
        for word in words:
            self.assertRegex(result.err, word, result)
        self.assertNotIn("Please report", result.err)
        return result

    def names(self, folder):
        return sorted(p.name for p in folder.iterdir())


class Commits(Base):
    def test_every_commit_written_after_damage_stands(self):
        for keep_last in (1, 2, 3):
            with self.subTest(keep_last=keep_last):
                run_dir = self.copy(f"keep{keep_last}")
                flip(run_dir / "ckpt/iter-000003/state.h5")
                (run_dir / "ckpt/iter-000004/MANIFEST.json").unlink()
                arguments = ["run", self.config, "--run-dir", run_dir, "--set", f"checkpoint.keep_last={keep_last}"]
                result = self.succeeds(*arguments)
                for number in (3, 4):
                    self.assertRegex(result.text, rf"iter-00000{number} is set aside as rejected-iter-00000{number}-0")
                kept = [f"iter-00000{i}" for i in range(5 - keep_last, 5)]
                rejected = ["rejected-iter-000003-0", "rejected-iter-000004-0"]
                self.assertEqual(self.names(run_dir / "ckpt"), ["LATEST", *kept, *rejected])
                self.assertEqual(digest_of(run_dir), digest_of(self.gold))
                self.succeeds("verify", run_dir)
                self.assertEqual([row["iteration"] for row in metrics_of(run_dir)], list(range(5)))

    def test_each_new_commit_is_there_when_the_next_is_made(self):
        run_dir = self.copy()
        for number in (2, 3, 4):
            flip(run_dir / f"ckpt/iter-00000{number}/state.h5")
        arguments = ["run", self.config, "--run-dir", run_dir, "--set", "checkpoint.keep_last=1"]
        for number in (2, 3):
            killed = run(*arguments, extra={"ESPALIER_FAULT": f"point=forward.enter;iter={number + 1};action=kill9"})
            self.assertEqual(killed.code, 137, killed)
            self.assertIn(f"iter-00000{number}", self.names(run_dir / "ckpt"))
            self.succeeds("verify", run_dir / "ckpt" / f"iter-00000{number}")
        self.succeeds(*arguments)
        self.assertEqual(digest_of(run_dir), digest_of(self.gold))

    def test_strange_entries_are_left_alone(self):
        run_dir = self.copy()
        ckpt = run_dir / "ckpt"
        for name in ("iter-1", "iter-0000007", "iter-abc"):
            (ckpt / name).mkdir()
        (ckpt / "iter-999999999999").mkdir()
        (ckpt / "iter-000009").write_text("a file")
        shutil.rmtree(ckpt / "iter-000004")
        self.succeeds("run", self.config, "--run-dir", run_dir)
        self.assertEqual(
            self.names(ckpt),
            sorted(["LATEST", "iter-000001", "iter-000002", "iter-000003", "iter-0000007", "iter-000004", "iter-1",
                    "iter-abc", "rejected-iter-000009-0", "rejected-iter-999999999999-0"]),
        )


class Exports(Base):
    def again(self, run_dir, *more):
        return run("run", self.config, "--run-dir", run_dir, *more)

    def raised(self, run_dir, *more):
        """The run goes on to a higher target."""
        changes = ["--allow-change", "prune.target", "--allow-change", "prune.iterations", "--allow-change", "export"]
        return self.again(run_dir, "--set", "prune.target=0.5", "--set", "prune.iterations=5", *changes, *more)

    def test_one_of_an_older_plan_is_replaced(self):
        run_dir = self.copy()
        old = digest_in(run_dir / "export/exact")
        result = self.raised(run_dir)
        self.assertEqual(result.code, 0, result)
        self.assertIn("is written anew: it holds the plan", result.text)
        self.assertNotEqual(digest_of(run_dir), old)
        self.assertEqual(digest_in(run_dir / "export/exact"), digest_of(run_dir))
        self.assertEqual(self.names(run_dir / "export"), ["exact"])
        self.succeeds("verify", run_dir / "export/exact")

    def test_killed_while_it_replaces(self):
        number = 0
        for point, nths in (("pre_rename", (1, 2)), ("post_rename", (1, 2)), ("unlink", (1, 5)), ("fsync_dir", (1, 2)), ("write", (1,))):
            for nth in nths:
                with self.subTest(point=point, nth=nth):
                    number += 1
                    run_dir = self.copy(f"killed{number}")
                    flip(run_dir / "ckpt/iter-000004/state.h5")
                    config = json.loads((run_dir / "export/exact/config.json").read_text())
                    self.forge(run_dir / "export/exact", config, "0" * 64)
                    killed = run("run", self.config, "--run-dir", run_dir,
                                 extra={"ESPALIER_FAULT": f"point=export.{point};nth={nth};action=kill9"})
                    self.assertEqual(killed.code, 137, killed)
                    place = run_dir / "export/exact"
                    if place.exists():
                        self.succeeds("verify", place)
                    result = self.again(run_dir)
                    self.assertEqual(result.code, 0, result)
                    self.assertEqual(digest_in(place), digest_of(run_dir))
                    self.assertEqual(self.names(run_dir / "export"), ["exact"])
                    self.succeeds("verify", place)

    def forge(self, export, config, digest):
        """As if an older plan had been exported: another digest, and hashes that agree."""
        import hashlib

        config["espalier_plan_digest"] = digest
        text = json.dumps(config, indent=2)
        (export / "config.json").write_text(text)
        provenance = json.loads((export / "provenance.json").read_text())
        provenance["files"]["config.json"] = hashlib.sha256(text.encode()).hexdigest()
        (export / "provenance.json").write_text(json.dumps(provenance, indent=2))

    def test_an_error_while_it_replaces_leaves_the_old_one(self):
        run_dir = self.copy()
        old = tree(run_dir / "export/exact")
        for nth in (1, 2):
            changed = run_dir if nth == 1 else self.folder / "second"
            if nth == 2:
                shutil.copytree(self.gold, changed)
            result = run(
                "run", self.config, "--run-dir", changed, "--set", "prune.target=0.5", "--set", "prune.iterations=5",
                "--allow-change", "prune.target", "--allow-change", "prune.iterations",
                extra={"ESPALIER_FAULT": f"point=export.pre_rename;nth={nth};action=errno:EIO"})
            self.assertEqual(result.code, 74, result)
            self.assertEqual(tree(changed / "export/exact"), old)
            self.assertEqual(self.names(changed / "export"), ["exact"])

    def test_a_whole_one_stays(self):
        run_dir = self.copy()
        before = tree(run_dir / "export/exact")
        result = self.again(run_dir)
        self.assertEqual(result.code, 0, result)
        self.assertIn("is there already", result.text)
        self.assertEqual(tree(run_dir / "export/exact"), before)

    def test_one_that_lost_files_is_completed(self):
        for name in ("model.safetensors", "config.json", "espalier_plan.h5", "modeling_espalier.py"):
            with self.subTest(name):
                run_dir = self.copy(name)
                (run_dir / "export/exact" / name).unlink()
                result = self.again(run_dir)
                self.assertEqual(result.code, 0, result)
                self.assertIn(f"its {name} is missing", result.text)
                self.succeeds("verify", run_dir / "export/exact")

    def test_what_others_changed_is_refused(self):
        def trained(export):
            flip(export / "model.safetensors", -3)

        def no_provenance(export):
            (export / "provenance.json").unlink()

        for change, word in ((trained, "model.safetensors is not what was written"), (no_provenance, "no export that")):
            with self.subTest(change.__name__):
                run_dir = self.copy(change.__name__)
                change(run_dir / "export/exact")
                before = tree(run_dir / "export")
                result = self.again(run_dir)
                self.assertEqual(result.code, 73, result)
                self.assertIn(word, result.err)
                self.assertIn(str(run_dir / "export/exact"), result.err)
                self.assertNotIn("load it with", result.out)
                self.assertEqual(tree(run_dir / "export"), before)

    def test_files_added_to_a_stale_one_are_not_lost(self):
        run_dir = self.copy()
        (run_dir / "export/exact/notes.txt").write_text("of weeks")
        commits = self.names(run_dir / "ckpt")
        resolved = (run_dir / "config.resolved.yaml").read_bytes()
        result = self.raised(run_dir)
        self.assertEqual(result.code, 73, result)
        self.assertIn("notes.txt was added", result.err)
        self.assertEqual((run_dir / "export/exact/notes.txt").read_text(), "of weeks")
        self.assertEqual(self.names(run_dir / "ckpt"), commits, "refused before an iteration")
        self.assertEqual((run_dir / "config.resolved.yaml").read_bytes(), resolved, "a refused command changes nothing")
        self.succeeds("run", self.config, "--run-dir", run_dir)

    def test_foreign_directories_are_refused_at_the_start(self):
        def foreign(place):
            place.mkdir(parents=True)
            (place / "thesis.tex").write_text("x")

        def of_another_run(place):
            place.parent.mkdir(parents=True)
            shutil.copytree(self.gold / "export/exact", place)

        def a_file(place):
            place.parent.mkdir(parents=True)
            place.write_text("x")

        def a_parent_that_is_a_file(place):
            place.parent.parent.mkdir(parents=True)
            place.parent.write_text("x")

        for make in (foreign, of_another_run, a_file, a_parent_that_is_a_file):
            with self.subTest(make.__name__):
                run_dir = self.folder / make.__name__
                make(run_dir / "export/exact")
                before = tree(run_dir / "export") if (run_dir / "export").is_dir() else None
                result = run("run", self.config, "--run-dir", run_dir, "--set", "prune.target=0.3")
                self.assertEqual(result.code, 73, result)
                self.assertIn("export", result.err)
                self.assertEqual(list((run_dir / "ckpt").iterdir()), [], "nothing was scored")
                if before is not None:
                    self.assertEqual(tree(run_dir / "export"), before)

    def test_outside_the_run_directory(self):
        outside = self.folder / "outside"
        config = self.bench.config("outside", **NO_EVALUATION, export=[{"format": "exact", "path": str(outside)}])
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        self.succeeds("run", config, "--run-dir", run_dir)  # whole and of this plan
        before = tree(outside)
        changes = ["--set", "prune.target=0.5", "--set", "prune.iterations=5",
                   "--allow-change", "prune.target", "--allow-change", "prune.iterations"]
        self.fails(73, [str(outside), "outside the run directory"], "run", config, "--run-dir", run_dir, *changes)
        self.assertEqual(tree(outside), before)
        self.assertFalse((run_dir / "ckpt/iter-000005").exists(), "refused before an iteration")
        self.fails(73, [str(outside)], "run", config, "--run-dir", self.folder / "other")

    def test_places_that_meet(self):
        for number, paths in enumerate((("a", "a/"), ("a", "a/b"), ("x/../a", "a"), (".",), ("..",))):
            with self.subTest(paths):
                exports = [{"format": "exact", "path": path} for path in paths]
                config = self.bench.config(f"meet{number}", **NO_EVALUATION, export=exports)
                result = run("run", config, "--run-dir", self.folder / f"meet{number}")
                self.assertIn(result.code, (73, 78), result)
                self.assertFalse((self.folder / f"meet{number}/ckpt/iter-000001").exists())

    def test_another_form_and_more_exports_of_a_finished_run(self):
        local = {"prune": {"ranking": "local", "attention_unit": "kv_group", "target": 0.5, "iterations": 2,
                           "protect": {"last_layers": 0}}}
        config = self.bench.config("forms", **merged(local, NO_EVALUATION), export=[EXACT])
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        digest = digest_of(run_dir)
        more = [{"format": "uniform", "path": "export/exact"}, {"format": "exact", "path": "export/second"}]
        changed = self.bench.config("more", **merged(local, NO_EVALUATION), export=more)
        self.fails(78, ["--allow-change export"], "run", changed, "--run-dir", run_dir)
        result = self.succeeds("run", changed, "--run-dir", run_dir, "--allow-change", "export")
        self.assertIn("it is of the form exact", result.text)
        self.assertEqual(result.out.count("load it with"), 2)
        self.assertNotIn("espalier", json.loads((run_dir / "export/exact/config.json").read_text()))
        self.assertEqual(digest_in(run_dir / "export/second"), digest)
        self.assertEqual(digest_of(run_dir), digest)
        self.assertEqual(self.names(run_dir / "export"), ["exact", "second"])
        for name in ("exact", "second"):
            self.succeeds("verify", run_dir / "export" / name)

    def test_export_never_writes_over_anything(self):
        for out in (self.gold / "export/exact", self.folder):
            self.fails(73, ["exists"], "export", self.gold, "--out", out)


class OnAnExport(Base):
    """A run whose source is an export: its schedule, and the plans that can be had from it."""

    def source(self, **prune):
        """(export, ratio in the measure) of a run with these rules."""
        config = self.bench.config("source", **merged({"prune": prune}, NO_EVALUATION), export=[EXACT])
        run_dir = self.folder / "source"
        shutil.rmtree(run_dir, ignore_errors=True)
        self.succeeds("run", config, "--run-dir", run_dir)
        return run_dir / "export/exact", metrics_of(run_dir)[-1]

    def on(self, export, name="on", **prune):
        return self.bench.config(name, **merged({"model": {"path": str(export)}, "prune": prune}, NO_EVALUATION))

    def range_of(self, result):
        low, high = re.search(r"those from ([\d.]+) to ([\d.]+) of the", result.err).groups()
        return float(low), float(high)

    def test_the_schedule_begins_at_the_source(self):
        for shape, expected in (
            ("linear", (0.3, 0.4, 0.5, 0.6)), ("gisp", (0.2, 1 / 3, 7 / 15, 0.6)),
            ("cosine", (0.2 + 0.2 * (1 - np.sqrt(0.5)), 0.4, 0.2 + 0.2 * (1 + np.sqrt(0.5)), 0.6)),
            ("geometric", tuple(1 - 0.8 * 0.5 ** (i / 4) for i in (1, 2, 3, 4))),
        ):
            with self.subTest(shape):
                export, _ = self.source(target=23 / UNITS, iterations=2)
                start = 23 / UNITS
                # The table is of 0.2; what the source has is a little more.
                run_dir = self.folder / shape
                self.succeeds("run", self.on(export, shape, shape=shape, target=0.6, iterations=4), "--run-dir", run_dir)
                rows = metrics_of(run_dir)
                self.assertEqual([row["iteration"] for row in rows], [2, 3, 4, 5, 6])
                for row, target in zip(rows[1:], expected, strict=True):
                    self.assertAlmostEqual(row["target"], target, delta=0.006)
                    self.assertEqual(round(row["sparsity_structures"] * UNITS), int(UNITS * row["target"] + 1e-9))
                self.assertAlmostEqual(rows[0]["sparsity_structures"], start, delta=1e-12)
                removed = [row["removed_heads"] + row["removed_channels"] for row in rows[1:]]
                self.assertTrue(all(removed[1:]), removed)
                self.assertEqual(removed[0] > 0, shape != "gisp", "gisp removes nothing in its first iteration")
                self.assertLessEqual(max(removed), 2 * sum(removed) / 4 + 1, removed)

    def test_a_target_that_the_source_has_passed(self):
        export, _ = self.source(target=0.4, iterations=2)
        for target in (0.1, 0.39, 44 / UNITS, 0.4):
            run_dir = self.folder / f"passed{target:.2f}"
            result = self.fails(78, [f"prune.target {target:.6g}"[:18], "0.392857 of the structures", "Raise prune.target"],
                                "run", self.on(export, target=target), "--run-dir", run_dir)
            self.assertNotIn("calibrate", result.text)
            self.assertFalse(run_dir.exists())
        # One unit more is a run.
        self.succeeds("run", self.on(export, target=45 / UNITS, iterations=1), "--run-dir", self.folder / "one")
        self.assertEqual(metrics_of(self.folder / "one")[-1]["removed_heads"]
                         + metrics_of(self.folder / "one")[-1]["removed_channels"], 1)
        tiny = self.bench.config("tiny", **merged({"prune": {"target": 0.001}}, NO_EVALUATION))
        self.fails(78, ["0.001 takes no unit"], "run", tiny, "--run-dir", self.folder / "tiny")

    def test_smaller_plans_keep_what_the_source_had_lost(self):
        for number, (ranking, measure, unit) in enumerate((
            ("global", "structures", "query_head"), ("global", "parameters", "kv_group"),
            ("local", "structures", "query_head"), ("local", "total_parameters", "query_head"),
            ("global_by_kind", "structures", "kv_group"), ("global_by_kind", "parameters", "query_head"),
        )):
            with self.subTest(ranking=ranking, measure=measure, unit=unit):
                rules = {"ranking": ranking, "measure": measure, "attention_unit": unit, "protect": {"last_layers": 0}}
                export, row = self.source(**rules, target=0.25, iterations=2)
                run_dir = self.folder / f"part{number}"
                self.succeeds("run", self.on(export, **rules, target=0.5, iterations=2), "--run-dir", run_dir)
                below = self.fails(78, ["cannot be had"], "export", run_dir, "--sparsity", 0.05, "--out", self.folder / "no")
                self.fails(78, ["cannot be had"], "export", run_dir, "--sparsity", 0.95, "--out", self.folder / "no")
                self.assertFalse((self.folder / "no").exists())
                low, high = self.range_of(below)
                self.assertLess(low, high)
                _, base = plan_of(export / "espalier_plan.h5")
                for k, sparsity in enumerate((low + 1e-6, (low + high) / 2, high)):
                    out = self.folder / f"part{number}-{k}"
                    self.succeeds("export", run_dir, "--sparsity", f"{sparsity:.6f}", "--out", out)
                    _, part = plan_of(out / "espalier_plan.h5")
                    for kind in ("attention/removed_at", "mlp/removed_at"):
                        self.assertTrue(((base[kind] < 0) | (part[kind] >= 0)).all(), kind)
                    self.succeeds("verify", out)
                for other in {"structures", "parameters", "total_parameters"} - {measure}:
                    self.fails(78, ["cannot be had"], "export", run_dir, "--sparsity", 0.01, "--measure", other,
                               "--out", self.folder / "no")
                    # A plan file knows its source, too.
                    self.fails(78, ["cannot be had"], "export", run_dir / "plan.h5", "--model", export, "--sparsity", 0.01,
                               "--measure", other, "--out", self.folder / "no")

    def test_a_plan_of_another_model(self):
        export, _ = self.source(target=0.3, iterations=1)
        early = self.folder / "early"
        self.succeeds("export", self.gold, "--sparsity", 0.1, "--out", early)
        plan = early / "espalier_plan.h5"
        self.fails(65, ["gone from the model"], "export", plan, "--model", export, "--out", self.folder / "no")
        config = self.bench.config("eval")
        for arguments in (["eval", config, "--model", export, "--plan", plan],):
            self.fails(65, ["gone from the model"], *arguments)

    def test_smaller_plans_of_a_plan_file_are_the_beginnings_of_its_order(self):
        _, whole = plan_of(self.gold / "plan.h5")
        places = np.concatenate([whole["attention/order"].ravel(), whole["mlp/order"].ravel()])
        for units in (0, 1, 20, (places >= 0).sum()):
            out = self.folder / f"first{units}"
            self.succeeds("export", self.gold / "plan.h5", "--model", self.bench.model, "--sparsity", units / UNITS, "--out", out)
            _, part = plan_of(out / "espalier_plan.h5")
            left = np.concatenate([part["attention/order"].ravel(), part["mlp/order"].ravel()])
            np.testing.assert_array_equal(left >= 0, (places >= 0) & (places < units))


class Changes(Base):
    """What may be changed of a run that goes on."""

    def changed(self, run_dir, **prune):
        arguments = ["resume", run_dir]
        for key, value in prune.items():
            arguments += ["--set", f"prune.{key}={value}", "--allow-change", f"prune.{key}"]
        return arguments

    def stopped_after_2(self, name):
        run_dir = self.copy(name)
        for number in (3, 4):
            shutil.rmtree(run_dir / f"ckpt/iter-00000{number}")
        shutil.rmtree(run_dir / "export/exact")
        return run_dir

    def test_a_finished_run(self):
        for name, prune, words in (
            ("raised", {"target": 0.6}, ["done 4 of 4 iterations", "0.4", "prune.iterations above 4"]),
            ("lowered", {"target": 0.2}, ["0.4", "removed stays removed", "espalier export"]),
            ("slower", {"iterations": 20}, ["would go to 0.1", "0.4"]),
            ("both", {"target": 0.5, "iterations": 20}, ["would go to 0.125", "0.4"]),
        ):
            with self.subTest(name):
                run_dir = self.copy(name)
                before = tree(run_dir / "ckpt"), (run_dir / "config.resolved.yaml").read_bytes(), (run_dir / "metrics.jsonl").read_bytes()
                self.fails(78, words, *self.changed(run_dir, **prune))
                after = tree(run_dir / "ckpt"), (run_dir / "config.resolved.yaml").read_bytes(), (run_dir / "metrics.jsonl").read_bytes()
                self.assertEqual(after, before, "a refused command changes nothing")
                self.succeeds("resume", run_dir)

    def test_a_finished_run_goes_further(self):
        run_dir = self.copy()
        self.succeeds(*self.changed(run_dir, target=0.6, iterations=6))
        rows = metrics_of(run_dir)
        self.assertEqual([row["iteration"] for row in rows], list(range(7)))
        for row, target in zip(rows[1:], (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True):
            self.assertAlmostEqual(row["target"], target, delta=1e-12)
            self.assertEqual(round(row["sparsity_structures"] * UNITS), int(UNITS * target + 1e-9))
        self.assertEqual(digest_in(run_dir / "export/exact"), digest_of(run_dir))
        self.assertEqual(status_of(run_dir)["iterations"], 6)

    def test_a_run_under_way(self):
        for name, prune, code in (("faster", {"iterations": 3}, 0), ("further", {"target": 0.6}, 0), ("fewer", {"iterations": 2}, 78),
                                  ("less", {"target": 0.1}, 78), ("slower", {"iterations": 10}, 78)):
            with self.subTest(name):
                run_dir = self.stopped_after_2(name)
                result = run(*self.changed(run_dir, **prune))
                self.assertEqual(result.code, code, result)
                if code == 0:
                    self.assertEqual(metrics_of(run_dir)[-1]["target"], prune.get("target", 0.4))
                    self.assertEqual(digest_in(run_dir / "export/exact"), digest_of(run_dir))
                else:
                    self.assertEqual(self.names(run_dir / "ckpt"), ["LATEST", "iter-000001", "iter-000002"])
                    self.succeeds("resume", run_dir)
                    self.assertEqual(digest_of(run_dir), digest_of(self.gold))


if __name__ == "__main__":
    main()
