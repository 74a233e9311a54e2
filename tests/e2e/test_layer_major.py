"""Layer by layer: the same scores and plans as micro-batch by micro-batch, in less memory, wherever boundaries are."""

import itertools
import json
import pathlib
import shutil
import sys

import h5py
import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import wait_for
from workbench import SHAPE, Case, Running, digest_of, main, metrics_of, run, status_of, write_options, write_tokens

LAYER_MAJOR = {"execution": {"order": "layer_major", "boundaries": "memory"}}
FILES = {"execution": {"order": "layer_major", "boundaries": "files"}}
SAMPLE_MAJOR = {"execution": {"order": "sample_major"}}
OPEN = {"protect": {"first_layers": 0, "last_layers": 0}}


def tables_of(path):
    """Every array of a score file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        attributes = {name: file.attrs[name] for name in file.attrs}
    return found, attributes


class Scores(Case):
    """Alone the same bits: the same operations run on the same numbers."""

    def score(self, name, change, how, ranks=1, tensor=1, extra=None):
        execution = {**change.get("execution", {}), **how["execution"]}
        config = self.bench.config(name, **{"prune": {"iterations": 1}, **change, "execution": execution})
        out = self.folder / f"{name}.h5"
        self.succeeds("score", config, "--out", out, "--tensor", tensor, ranks=ranks, extra=extra)
        return tables_of(out)

    def same_bits(self, change, name):
        expected, facts = self.score(f"{name}-sample", change, SAMPLE_MAJOR)
        for how, word in ((LAYER_MAJOR, "memory"), (FILES, "files")):
            found, of_these = self.score(f"{name}-{word}", change, how)
            self.assertEqual(sorted(found), sorted(expected))
            for array, values in expected.items():
                np.testing.assert_array_equal(found[array], values, f"{name}, boundaries in {word}, {array}")
            self.assertEqual({k: str(v) for k, v in of_these.items()}, {k: str(v) for k, v in facts.items()})

    def test_every_criterion(self):
        for criterion in ("taylor", "taylor_gate", "taylor_gate_sample", "wanda_sp", "flap", "obs", "magnitude", "random"):
            with self.subTest(criterion):
                self.same_bits({"importance": {"criterion": criterion}}, criterion)

    def test_every_dtype(self):
        for dtype, criterion in itertools.product(("float32", "bfloat16", "float16"), ("taylor", "taylor_gate", "obs")):
            with self.subTest(f"{dtype} {criterion}"):
                self.same_bits({"model": {"path": "model", "dtype": dtype}, "importance": {"criterion": criterion}},
                               f"{dtype}-{criterion}")

    def test_domains_and_objectives(self):
        write_options(self.bench.folder / "items.h5")
        items = {"domains": [{"name": "i", "tokens": "items.h5", "objective": "margin"}], "micro_batch_tokens": 48}
        for name, change in {
            "one-by-one": {"calibration": {"combine": "weighted_mean"}},
            "apart": {"calibration": {"combine": "worst_domain"}, "importance": {"criterion": "taylor_gate"}},
            "obs-apart": {"calibration": {"combine": "weighted_mean"}, "importance": {"criterion": "obs"}},
            "margin": {"calibration": items},
            "margin-gate": {"calibration": items, "importance": {"criterion": "taylor_gate_sample"}},
            "own-prompts": {"calibration": items, "execution": {"share_prompts": False}},
            "scores-reduced": {"importance": {"reduction": "scores"}},
        }.items():
            with self.subTest(name):
                self.same_bits(change, name)

    def test_an_overflow_of_float16(self):
        """Where a gradient leaves float16, both orders come back with a smaller scale of the loss, which rounds the smallest
        gradients otherwise: hence 2 %."""
        change = {"model": {"path": "model", "dtype": "float16"}}
        expected, _ = self.score("half-sample", change, SAMPLE_MAJOR)
        fault = {"ESPALIER_FAULT": "point=layer.backward;nth=5;action=nan"}
        found, _ = self.score("half-layer", change, LAYER_MAJOR, extra=fault)
        for kind in ("attention", "mlp"):
            np.testing.assert_allclose(found[f"{kind}/raw"], expected[f"{kind}/raw"], rtol=0.02)

    def test_layouts(self):
        """Up to rounding on every layout, for all that crosses ranks in another order."""
        for criterion in ("taylor", "taylor_gate_sample", "flap", "obs"):
            change = {"importance": {"criterion": criterion}}
            expected, _ = self.score(f"{criterion}-alone", change, SAMPLE_MAJOR)
            for tensor, data in ((2, 1), (1, 2), (2, 2), (3, 1), (1, 7)):
                with self.subTest(f"{criterion} {tensor}x{data}"):
                    found, _ = self.score(f"{criterion}-{tensor}x{data}", change, FILES if data == 2 else LAYER_MAJOR,
                                          tensor * data, tensor)
                    for kind in ("attention", "mlp"):
                        name = f"{kind}/raw"
                        finite = np.isfinite(expected[name])
                        np.testing.assert_array_equal(np.isfinite(found[name]), finite)
                        scale = np.abs(expected[name][finite]).max()
                        np.testing.assert_allclose(found[name][finite], expected[name][finite], atol=1e-9 * scale, rtol=0)


class Runs(Case):
    def pruned(self, name, how, tensor=1, data=1, prefix=(), **change):
        run_dir = self.folder / f"{name}-{tensor}x{data}"
        arguments = ["run", self.bench.config(name, **{**change, **how}), "--run-dir", run_dir, "--tensor", tensor]
        self.succeeds(*arguments, ranks=tensor * data, prefix=prefix)
        return run_dir

    def same_run(self, a, b):
        self.assertEqual(digest_of(a), digest_of(b))
        for one, other in zip(metrics_of(a), metrics_of(b), strict=True):
            self.assertEqual(one.get("perplexity"), other.get("perplexity"))
            self.assertEqual(one.get("loss"), other.get("loss"))

    def test_runs_evaluate_slice_and_go_on(self):
        """Every iteration of a run, its evaluations, what a refit needs and the exported model."""
        change = {"refit": {"enabled": True}, "export": [{"format": "exact", "path": "export/exact"}]}
        whole = self.pruned("whole", SAMPLE_MAJOR, **change)
        for name, how in (("memory", LAYER_MAJOR), ("files", FILES)):
            layers = self.pruned(name, how, **change)
            self.same_run(whole, layers)
            files = sorted((whole / "export/exact").glob("*.safetensors"))
            self.assertTrue(files)
            for file in files:
                self.assertEqual((layers / "export/exact" / file.name).read_bytes(), file.read_bytes())

    def test_layouts(self):
        expected = digest_of(self.pruned("alone", SAMPLE_MAJOR))
        for n, (tensor, data) in enumerate([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3)]):
            found = self.pruned("layers", (LAYER_MAJOR, FILES)[n % 2], tensor, data)
            self.assertEqual(digest_of(found), expected, f"{tensor} x {data}")

    def test_compensation_and_groups(self):
        for name, change in {
            "means": {"importance": {"criterion": "flap"}, "prune": {"compensation": "mean"}},
            "groups": {"prune": {"attention_unit": "kv_group"}},
        }.items():
            whole = self.pruned(f"{name}-whole", SAMPLE_MAJOR, **change)
            self.same_run(whole, self.pruned(f"{name}-layers", LAYER_MAJOR, **change))

    def test_boundaries_are_counted(self):
        """The inputs of all layers from the lowest scored one up, and what is on its way, of all tokens."""
        tokens = {"domains": [{"name": "a", "tokens": "a.h5"}], "micro_batch_tokens": 24}
        for first, how in ((0, LAYER_MAJOR), (0, FILES), (2, LAYER_MAJOR), (2, FILES)):
            change = {"calibration": tokens, "prune": {"iterations": 1, "protect": {"first_layers": first, "last_layers": 0}}}
            row = metrics_of(self.pruned(f"{first}-{how['execution']['boundaries']}", how, **change))[1]
            one = 6 * 12 * SHAPE["hidden"] * 8
            self.assertEqual(row["boundary_bytes"], (SHAPE["layers"] - first + 1) * one)
        self.assertNotIn("boundary_bytes", metrics_of(self.pruned("whole", SAMPLE_MAJOR))[1])

    def test_files_that_cannot_be_written(self):
        config = self.bench.config("full", **FILES)
        run_dir = self.folder / "full"
        result = run("run", config, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=scratch.write;nth=9;action=errno:ENOSPC"})
        self.assertEqual(result.code, 74, result)
        self.assertIn("free space or quota", result.err)
        place = self.folder / "elsewhere"
        result = run("run", config, "--run-dir", self.folder / "other", "--set", f"execution.scratch={place}")
        self.assertNotEqual(result.code, 0)
        self.assertIn(str(place), result.err)
        place.mkdir()
        self.succeeds("run", config, "--run-dir", run_dir, "--set", f"execution.scratch={place}")
        self.assertEqual(list(place.iterdir()), [], "files without a name leave nothing")

    def test_a_stop_somewhere_in_a_pass(self):
        """Kept or begun anew: see tests/faults/test_paused_layers.py."""
        expected = digest_of(self.pruned("undisturbed", SAMPLE_MAJOR))
        config = self.bench.config("stopped", **LAYER_MAJOR)
        run_dir = self.folder / "stopped"
        arguments = ["run", config, "--run-dir", run_dir]
        running = Running(arguments, 1, {"ESPALIER_FAULT": "point=layer.backward;iter=2;action=slow:200"})
        wait_for(lambda: (run_dir / "status.json").exists() and status_of(run_dir)["iteration"] == 2, running)
        self.succeeds("stop", run_dir)
        self.assertEqual(running.wait().code, 75)
        self.succeeds(*arguments, "--tensor", 2, ranks=2)
        self.assertEqual(digest_of(run_dir), expected)

    def test_what_is_not_finite(self):
        for fault, word in (("forward.exit", "loss"), ("layer.backward", "gradient"), ("weight.gradient", "gradient")):
            extra = {"ESPALIER_FAULT": f"point={fault};nth=3;action=nan"}
            config = self.bench.config("fails", **LAYER_MAJOR)
            result = run("run", config, "--run-dir", self.folder / fault, extra=extra)
            self.assertEqual(result.code, 65, result)
            self.assertRegex(result.err, rf"{word} is NaN or infinite")
            self.assertIn("micro-batch ", result.err)
            config = self.bench.config("skips", **LAYER_MAJOR, calibration={"non_finite": "skip-batch"})
            run_dir = self.folder / f"{fault}-skipped"
            result = self.succeeds("run", config, "--run-dir", run_dir, extra=extra)
            self.assertIn("begins anew", result.err)
            self.assertEqual(len(metrics_of(run_dir)[1]["skipped"]), 1)

    def test_unreadable_layer(self):
        """What reading ahead cannot read ends the run with the file's name."""
        model = self.folder / "model"
        shutil.copytree(self.bench.model, model)
        file = next(model.glob("*.safetensors"))
        tensors = load_file(file)
        name = "model.layers.2.mlp.down_proj.weight"
        tensors[name] = np.full_like(tensors[name], np.nan)
        save_file(tensors, file, metadata={"format": "pt"})
        config = self.bench.config("broken", model={"path": str(model), "dtype": "float32"}, **LAYER_MAJOR)
        result = run("run", config, "--run-dir", self.folder / "broken")
        self.assertEqual(result.code, 65, result)
        self.assertIn(name, result.err)


class Chosen(Case):
    """execution.order: auto looks at what there is."""

    model = {"layers": 12, "hidden": 256, "heads": 8, "kv_heads": 8, "head_dim": 32, "channels": 1024}

    def test_auto(self):
        write_tokens(self.bench.folder / "long.h5", rows=64, length=64, seed=5)
        change = {"calibration": {"domains": [{"name": "long", "tokens": "long.h5"}], "micro_batch_tokens": 512},
                  "model": {"path": "model", "dtype": "float64"}, "prune": {"iterations": 1}, "evaluation": {"perplexity": []}}
        plan = {}
        for order in ("sample_major", "layer_major"):
            config = self.bench.config(order, **change, execution={"order": order, "boundaries": "files"})
            plan[order] = json.loads(self.succeeds("plan", config, "--json").out)["total_bytes"]
        self.assertLess(plan["layer_major"], 0.5 * plan["sample_major"])
        config = self.bench.config("auto", **change)
        memory = 256 * 2**20 + 1.5 * plan["sample_major"]  # what auto asks for
        for gib, order in ((memory * 1.1 / 2**30, "sample_major"), (memory * 0.85 / 2**30, "layer_major")):
            text = self.succeeds("plan", config, "--memory", f"{gib:.4f}").out
            self.assertEqual("layer by layer" in text, order == "layer_major", text)
            if order == "layer_major":
                self.assertRegex(text, r"order +layer_major, boundaries in \w+ \(.*would not hold sample_major")
        run_dir = self.folder / "auto"
        self.succeeds("run", config, "--run-dir", run_dir)
        self.assertNotIn("boundary_bytes", metrics_of(run_dir)[1])


if __name__ == "__main__":
    main()
