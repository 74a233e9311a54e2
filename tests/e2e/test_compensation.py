"""Runs whose exports stand for what was removed: killed, resumed, at smaller sparsities, in forms, pruned again."""

import json
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import h5py
import numpy as np
from safetensors.numpy import load_file

import workbench
from interrupted import frozen, kill
from workbench import Running, main, run

COMPENSATED = {
    "importance": {"criterion": "flap", "normalization": "none"},
    "prune": {"target": 0.45, "iterations": 3, "compensation": "mean"},
    "export": [{"format": "exact", "path": "export/exact"}],
}
PROJECTIONS = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


def tensors_of(path):
    return load_file(pathlib.Path(path) / "model.safetensors")


def biases_of(path):
    return {name: tensor for name, tensor in tensors_of(path).items() if name.endswith(("o_proj.bias", "down_proj.bias"))}


def means_of(run_dir):
    with h5py.File(run_dir / "plan.h5") as file:
        return {kind: file["means"][kind][:] for kind in PROJECTIONS}


class Compensation(workbench.Case):
    model = {"family": "llama"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config("compensated", **COMPENSATED)
        cls.first = cls.class_folder / "first"
        result = run("run", cls.config, "--run-dir", cls.first)
        assert result.code == 0, result
        cls.export = cls.first / "export/exact"

    def changed(self, **change):
        return self.bench.config(self.id().rpartition(".")[2], **workbench.merged(COMPENSATED, change))

    def is_refused(self, code, words, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.code, code, result)
        for word in words:
            self.assertIn(word, " ".join(result.text.split()), result)
        return result

    def test_killed_and_resumed_the_export_is_the_same(self):
        for at in (1, 2, 3):
            run_dir = self.folder / f"killed{at}"
            fault = {"ESPALIER_FAULT": f"point=save.exit;iter={at};action=kill9"}
            self.assertEqual(run("run", self.config, "--run-dir", run_dir, extra=fault).code, 137)
            self.assertIn("means of what fell", self.succeeds("verify", run_dir).text)
            self.succeeds("resume", run_dir)
            self.assertEqual(workbench.weights_of(run_dir / "export/exact"), workbench.weights_of(self.export))
            self.assertEqual((run_dir / "export/exact/espalier_plan.h5").read_bytes(),
                             (self.export / "espalier_plan.h5").read_bytes())
        # On another layout the means are the same up to rounding.
        run_dir = self.folder / "elsewhere"
        fault = {"ESPALIER_FAULT": "point=save.exit;iter=2;action=kill9"}
        self.assertEqual(run("run", self.config, "--run-dir", run_dir, extra=fault).code, 137)
        self.succeeds("resume", run_dir, "--tensor", 3, ranks=3)
        self.assertEqual(workbench.digest_of(run_dir), workbench.digest_of(self.first))
        for kind, means in means_of(run_dir).items():
            np.testing.assert_allclose(means, means_of(self.first)[kind], rtol=0, atol=1e-12)

    def test_stopped_inside_a_pass_it_goes_on_with_the_sums(self):
        run_dir = self.folder / "stopped"
        fault = {"ESPALIER_FAULT": "point=forward.enter;iter=2;nth=3;action=stop"}
        running = Running(["run", self.config, "--run-dir", run_dir], extra=fault)
        for pid in frozen(running):
            kill(pid, signal.SIGUSR1)
            kill(pid, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        self.assertTrue((run_dir / "ckpt/pass-000002").exists())
        self.succeeds("resume", run_dir)
        for kind, means in means_of(run_dir).items():
            np.testing.assert_allclose(means, means_of(self.first)[kind], rtol=0, atol=1e-12)

    def test_a_smaller_plan_is_what_the_run_had_then(self):
        run_dir = self.folder / "early"
        fault = {"ESPALIER_FAULT": "point=calibrate.enter;iter=3;action=kill9"}
        self.assertEqual(run("run", self.config, "--run-dir", run_dir, extra=fault).code, 137)
        self.succeeds("export", run_dir, "--out", self.folder / "then")
        self.succeeds("export", self.first, "--sparsity", 0.3, "--out", self.folder / "later")
        self.assertEqual(workbench.weights_of(self.folder / "then"), workbench.weights_of(self.folder / "later"))
        self.succeeds("export", self.first, "--out", self.folder / "whole")
        self.assertEqual(workbench.weights_of(self.folder / "whole"), workbench.weights_of(self.export))
        self.succeeds("export", self.first, "--sparsity", 0, "--out", self.folder / "dense")
        for name, bias in biases_of(self.folder / "dense").items():
            self.assertFalse(bias.any(), name)

    def test_a_plan_file_has_the_means(self):
        self.succeeds("export", self.first / "plan.h5", "--model", self.bench.model, "--out", self.folder / "out")
        self.assertEqual(workbench.weights_of(self.folder / "out"), workbench.weights_of(self.export))

    def test_left_out(self):
        self.succeeds("export", self.first, "--no-compensation", "--out", self.folder / "out")
        plain, full = tensors_of(self.folder / "out"), tensors_of(self.export)
        self.assertEqual(set(full) - set(plain), set(biases_of(self.export)))
        self.assertEqual(len(biases_of(self.export)), 2 * workbench.SHAPE["layers"])
        for name, tensor in plain.items():
            self.assertTrue((tensor == full[name]).all(), name)
        self.assertNotIn("output_bias", json.loads((self.folder / "out/config.json").read_text())["espalier"])
        # The same run without the key removes the same and exports the same.
        run_dir = self.folder / "run"
        self.succeeds("run", self.changed(prune={"compensation": "none"}), "--run-dir", run_dir)
        self.assertEqual(workbench.digest_of(run_dir), workbench.digest_of(self.first))
        self.assertEqual(workbench.weights_of(run_dir / "export/exact"), workbench.weights_of(self.folder / "out"))
        with h5py.File(run_dir / "plan.h5") as file:
            self.assertNotIn("means", file)

    def test_evaluations_of_the_export_are_with_biases_and_alike_on_any_layout(self):
        values = {}
        for name, ranks, tensor, model in (("1x1", 1, 1, self.export), ("2x1", 2, 2, self.export), ("3x1", 3, 3, self.export),
                                           ("1x2", 2, 1, self.export)):
            out = self.folder / f"{name}.json"
            self.succeeds("eval", self.config, "--model", model, "--tensor", tensor, "--out", out, ranks=ranks)
            values[name] = json.loads(out.read_text())["perplexity"]["held"]["perplexity"]
        for name, value in values.items():
            self.assertLess(abs(value / values["1x1"] - 1), 1e-10, name)
        # The run's own are without.
        inside = workbench.metrics_of(self.first)[-1]["perplexity"]["held"]
        self.assertGreater(abs(values["1x1"] / inside - 1), 1e-4)
        self.succeeds("export", self.first, "--no-compensation", "--out", self.folder / "plain")
        self.succeeds("eval", self.config, "--model", self.folder / "plain", "--out", self.folder / "plain.json")
        plain = json.loads((self.folder / "plain.json").read_text())["perplexity"]["held"]["perplexity"]
        self.assertLess(abs(plain / inside - 1), 1e-10)
        card = (self.export / "README.md").read_text()
        self.assertIn("Perplexity, iteration 3, without output biases", card)

    def test_pruned_again_it_adds_to_the_biases(self):
        run_dir = self.folder / "again"
        config = self.changed(model={"path": str(self.export)}, prune={"target": 0.6, "iterations": 2})
        self.succeeds("run", config, "--run-dir", run_dir, "--tensor", 2, ranks=2)
        self.succeeds("verify", run_dir)
        self.succeeds("verify", run_dir / "export/exact", "--deep")
        means, before, after = means_of(run_dir), means_of(self.first), workbench.plan_of(run_dir / "plan.h5")[1]
        old, new, dense = biases_of(self.export), biases_of(run_dir / "export/exact"), tensors_of(self.bench.model)
        grown = 0
        for kind, projection in PROJECTIONS.items():
            at = after[f"{kind}/removed_at"]
            fell_before, fell_now = (at >= 1) & (at <= 3), at > 3
            width = means[kind].shape[1] // fell_now.shape[1]
            known = np.repeat(fell_before, width, axis=1)
            self.assertTrue((means[kind][known] == before[kind][known]).all())
            for layer in range(workbench.SHAPE["layers"]):
                columns = np.flatnonzero(np.repeat(fell_now[layer], width))
                grown += len(columns)
                name = f"model.layers.{layer}.{projection}"
                weight = dense[f"{name}.weight"].astype("float64")[:, columns]
                wanted = old[f"{name}.bias"] + weight @ means[kind][layer, columns]
                np.testing.assert_allclose(new[f"{name}.bias"], wanted, rtol=2 * np.finfo("float32").eps, atol=1e-9)
        self.assertGreater(grown, 0)
        # Ratios and numbers of parameters are of the unpruned model, which has no such biases.
        seen = json.loads(self.succeeds("inspect", run_dir, "--json").out)
        self.assertEqual(seen["dense"], json.loads(self.succeeds("inspect", self.first, "--json").out)["dense"])
        # What the first run left stays where the second does not compensate.
        plain = self.folder / "plain"
        self.succeeds("export", run_dir, "--no-compensation", "--out", plain)
        for name, bias in biases_of(plain).items():
            self.assertTrue((bias == old[name]).all(), name)
        # A plan of both runs compensates for all of it on the unpruned model, too.
        self.succeeds("export", run_dir / "plan.h5", "--model", self.bench.model, "--out", self.folder / "both")
        for name, bias in biases_of(self.folder / "both").items():
            np.testing.assert_allclose(bias, new[name], rtol=4 * np.finfo("float32").eps, atol=1e-6, err_msg=name)

    def test_without_the_means_of_an_earlier_run(self):
        plain = self.folder / "plain"
        self.succeeds("export", self.first, "--no-compensation", "--out", plain)
        run_dir = self.folder / "again"
        self.succeeds("run", self.changed(model={"path": str(plain)}, prune={"target": 0.6, "iterations": 1}), "--run-dir", run_dir)
        self.assertEqual(len(biases_of(run_dir / "export/exact")), 2 * workbench.SHAPE["layers"])
        self.is_refused(65, ["no mean is known of", "--no-compensation"], "export", run_dir / "plan.h5", "--model",
                        self.bench.model, "--out", self.folder / "out")
        self.assertFalse((self.folder / "out").exists())

    def test_uniform(self):
        change = {"prune": {"ranking": "local", "attention_unit": "kv_group", "target": 0.5, "iterations": 1,
                            "protect": {"first_layers": 0, "last_layers": 0}},
                  "export": [{"format": "uniform", "path": "uniform"}]}
        run_dir = self.folder / "run"
        self.succeeds("run", self.changed(**change), "--run-dir", run_dir)
        config = json.loads((run_dir / "uniform/config.json").read_text())
        self.assertIs(config["attention_bias"], True)
        self.assertIs(config["mlp_bias"], True)
        written = tensors_of(run_dir / "uniform")
        for layer in range(workbench.SHAPE["layers"]):
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
                self.assertFalse(written[f"model.layers.{layer}.{name}.bias"].any())
            for name in PROJECTIONS.values():
                self.assertTrue(written[f"model.layers.{layer}.{name}.bias"].any())
        self.is_refused(65, ["attention_bias = true"], "verify", run_dir / "uniform")
        # Other families: refused before anything is read, and in `export`.
        qwen = workbench.make_model(self.folder / "qwen2", "qwen2")
        config = self.changed(**workbench.merged(change, {"model": {"path": str(qwen)}}))
        words = ["uniform export as qwen2 cannot hold", "--no-compensation", "format: exact"]
        self.is_refused(78, words, "run", config, "--run-dir", self.folder / "refused")
        self.succeeds("run", config, "--run-dir", self.folder / "exact", "--set", "export=[]")
        out = self.folder / "out"
        self.is_refused(78, words, "export", self.folder / "exact", "--format", "uniform", "--out", out)
        self.assertFalse(out.exists())
        self.succeeds("export", self.folder / "exact", "--format", "uniform", "--no-compensation", "--out", out)

    def test_only_flap_has_the_means(self):
        for criterion in ("taylor", "wanda_sp", "random"):
            self.is_refused(78, ["prune.compensation = mean", f"importance.criterion = {criterion}"], "run",
                            self.changed(importance={"criterion": criterion}), "--run-dir", self.folder / "run")

    def test_it_cannot_begin_in_the_middle(self):
        run_dir = self.folder / "run"
        config = self.changed(prune={"compensation": "none"})
        fault = {"ESPALIER_FAULT": "point=save.exit;iter=1;action=kill9"}
        self.assertEqual(run("run", config, "--run-dir", run_dir, extra=fault).code, 137)
        self.is_refused(78, ["prune.compensation was none and is now mean"], "resume", run_dir, "--set", "prune.compensation=mean")
        self.is_refused(78, ["the run's commit has no means"], "resume", run_dir, "--set", "prune.compensation=mean",
                        "--allow-change", "prune.compensation")
        self.succeeds("resume", run_dir)


if __name__ == "__main__":
    main()
