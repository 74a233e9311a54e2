"""An export that transformers loaded, trained and saved again is a model like any other: it runs, is pruned further, exports."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

SCRATCH = tempfile.mkdtemp(prefix="espalier-test-hf-")
unittest.addModuleCleanup(shutil.rmtree, SCRATCH, True)
os.environ.update(HF_HOME=SCRATCH, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import workbench  # noqa: E402

EXPORT = {"export": [{"format": "exact", "path": "export/exact"}]}
NOTE = "there is no espalier_plan.h5"


def loaded(path, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **settings)


def trained(model):
    """One step of plain gradient descent on random tokens."""
    tokens = torch.randint(0, workbench.SHAPE["vocab"], (2, 12), generator=torch.Generator().manual_seed(1))
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.05 * parameter.grad)
    return model.eval()


def rows_within(small, large):
    """Whether every row of `small` is, bit for bit, one of `large`."""
    return {row.numpy().tobytes() for row in small.float()} <= {row.numpy().tobytes() for row in large.float()}


class PruneAgain(workbench.Case):
    model = {"family": "llama"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        cls.first = cls.class_folder / "first"
        result = workbench.run("run", cls.bench.config(**EXPORT), "--run-dir", cls.first)
        assert result.code == 0, result
        cls.export = cls.first / "export/exact"
        cls.saved = cls.class_folder / "saved"
        trained(loaded(cls.export, dtype=torch.bfloat16)).save_pretrained(cls.saved)

    def config(self, model, **change):
        return self.bench.config(self.id().rpartition(".")[2], **workbench.merged(
            {"model": {"path": str(model)}, "prune": {"target": 0.6, "iterations": 2}, **EXPORT}, change))

    def inspection(self, path):
        return json.loads(self.succeeds("inspect", path, "--json").out)

    def test_card_states_each_fact_once(self):
        card = (self.export / "README.md").read_text().split("## Loading")[0]
        names = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")]
        self.assertEqual(sorted(names), sorted(set(names)))
        self.assertIn("Perplexity, iteration 0", names)
        self.assertIn("Perplexity, iteration 4", names)
        once = self.folder / "once"
        config = self.bench.config("once", evaluation={"every": 100}, prune={"iterations": 1}, **EXPORT)
        self.succeeds("run", config, "--run-dir", once)
        self.succeeds("export", once, "--sparsity", 0.0, "--out", self.folder / "dense")
        self.assertEqual((self.folder / "dense/README.md").read_text().count("Perplexity, iteration 0"), 1)

    def test_what_was_saved_is_accepted_everywhere(self):
        self.assertFalse((self.saved / "espalier_plan.h5").exists())
        result = self.succeeds("verify", self.saved, "--deep")
        self.assertIn(NOTE, result.text)
        seen, before = self.inspection(self.saved), self.inspection(self.export)
        self.assertEqual(seen["layers"], before["layers"])
        self.assertTrue(any(NOTE in note for note in seen["notes"]), seen["notes"])
        self.assertEqual(before["notes"], [])
        config = self.config(self.saved)
        self.assertIn(NOTE, self.succeeds("eval", config, "--model", self.saved).text)
        self.succeeds("score", config, "--out", self.folder / "scores.h5")
        # Both spellings may stand there, and only one of them is up to date.
        stale = self.folder / "stale"
        shutil.copytree(self.saved, stale)
        text = json.loads((stale / "config.json").read_text())
        text.update(dtype="float32", torch_dtype="bfloat16")
        (stale / "config.json").write_text(json.dumps(text))
        self.assertIn("dtype counts", self.succeeds("verify", stale).text)
        self.assertEqual(self.inspection(stale)["layers"], before["layers"])

    def test_pruned_further_it_exports_rows_of_what_was_saved(self):
        run_dir = self.folder / "run"
        result = self.succeeds("run", self.config(self.saved), "--run-dir", run_dir)
        self.assertIn(NOTE, result.text)
        final = run_dir / "export/exact"
        after, before = self.inspection(final), self.inspection(self.saved)
        self.assertLess(after["decoder_parameters"], before["decoder_parameters"])
        self.assertEqual(after["dense"], before["dense"])
        source, kept = load_file(self.saved / "model.safetensors"), load_file(final / "model.safetensors")
        for name, tensor in kept.items():
            self.assertEqual(tensor.dtype, torch.bfloat16, name)
            rows, other = (tensor.T, source[name].T) if name.endswith(("o_proj.weight", "down_proj.weight")) \
                else (tensor, source[name])
            self.assertTrue(rows_within(rows.reshape(rows.shape[0], -1), other.reshape(other.shape[0], -1)), name)
        # transformers opens it and computes what the program computes.
        perplexity = workbench.metrics_of(run_dir)[-1]["perplexity"]["held"]
        with workbench.h5py.File(self.bench.folder / "eval.h5") as file:
            tokens = torch.tensor(file["tokens"][:], dtype=torch.long)
        with torch.no_grad():
            loss = loaded(final, dtype=torch.float64)(input_ids=tokens, labels=tokens).loss
        self.assertLess(abs(loss.exp().item() / perplexity - 1), 1e-4)  # RMSNorm and rope of transformers are float32
        self.assertIn("Unit numbers", (final / "README.md").read_text())
        # Started again it goes on from its own commits, and smaller plans of it are exports, down to what was saved.
        self.succeeds("run", self.config(self.saved), "--run-dir", run_dir)
        self.succeeds("export", run_dir, "--sparsity", 0.5, "--out", self.folder / "half")
        result = workbench.run("export", run_dir, "--sparsity", 0.1, "--out", self.folder / "tenth")
        self.assertEqual(result.code, 78, result)
        self.assertIn("cannot be had from this plan", result.text)

    def test_with_the_plan_file_copied_the_numbers_go_on(self):
        with_plan = self.folder / "with-plan"
        shutil.copytree(self.saved, with_plan)
        shutil.copy(self.export / "espalier_plan.h5", with_plan)
        run_dir = self.folder / "run"
        result = self.succeeds("run", self.config(with_plan), "--run-dir", run_dir)
        self.assertNotIn(NOTE, result.text)
        _, first = workbench.plan_of(self.first / "plan.h5")
        _, last = workbench.plan_of(run_dir / "plan.h5")
        for name in ("attention/removed_at", "mlp/removed_at"):
            gone = first[name] >= 0
            self.assertTrue((last[name][gone] == first[name][gone]).all(), name)
        # Its commits count units of the unpruned model: without the file they would mean other units.
        (with_plan / "espalier_plan.h5").unlink()
        result = workbench.run("run", self.config(with_plan), "--run-dir", run_dir)
        self.assertEqual(result.code, 65, result)
        self.assertIn("espalier_plan.h5", result.text)

    def test_a_plan_of_other_numbers_is_refused(self):
        result = workbench.run("export", self.first / "plan.h5", "--model", self.saved, "--out", self.folder / "out")
        self.assertEqual(result.code, 65, result)
        self.assertIn("Copy espalier_plan.h5", result.text)
        self.assertFalse((self.folder / "out").exists())

    def test_kv_groups_need_whole_groups(self):
        result = workbench.run("run", self.config(self.saved, prune={"attention_unit": "kv_group"}), "--run-dir",
                               self.folder / "run")
        self.assertEqual(result.code, 78, result)
        self.assertIn("query_head", result.text)

    def test_tensors_without_elements_may_be_absent(self):
        """As transformers leaves them out for a layer of which nothing is left."""
        stored, absent = self.folder / "stored", self.folder / "absent"
        sys.path.insert(0, str(workbench.ROOT / "tests/oracle"))
        import plan_files

        config = json.loads((self.bench.model / "config.json").read_text())
        removed = plan_files.draw(config, "query_head", 3, empty_attention=(1,), empty_mlp=(2,))
        plan_files.write(self.folder / "plan.h5", removed, "query_head", "0" * 64)
        self.succeeds("export", self.folder / "plan.h5", "--model", self.bench.model, "--out", stored)
        loaded(stored).save_pretrained(absent)
        self.assertEqual(sum(t.numel() == 0 for t in load_file(stored / "model.safetensors").values()), 7)
        self.assertTrue(all(t.numel() for t in load_file(absent / "model.safetensors").values()))
        values = []
        for path in (stored, absent):
            self.succeeds("verify", path, "--deep")
            values.append(json.loads(self.succeeds("inspect", path, "--json").out)["layers"])
            self.succeeds("eval", self.config(path), "--model", path)
        self.assertEqual(*values)


if __name__ == "__main__":
    workbench.main()
