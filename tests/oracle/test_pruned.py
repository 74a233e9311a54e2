"""Masked dense in transformers = sliced on load = exported and read by transformers, for plans drawn at random.

Plans have uneven groups, KV heads that nobody reads, layers without heads and layers without channels; runs rarely make
such. Every export is opened by both supported versions of transformers.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]

import h5py  # noqa: E402
import torch  # noqa: E402

import compare  # noqa: E402
import plan_files  # noqa: E402
import reference  # noqa: E402
import token_files  # noqa: E402
from make_random import make  # noqa: E402

READ_EXPORT = """
import sys, torch, transformers
transformers.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[3] == "exact", dtype=torch.float32)
model.eval()
tokens = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(tokens).logits.double(), sys.argv[4])
print(transformers.__version__)
"""


def versions():
    """PYTHONPATH additions, one per supported transformers; a missing one is an error, not fewer comparisons."""
    other = pathlib.Path(sys.prefix) / "transformers-4.57.1"
    if not other.is_dir():
        raise RuntimeError(f"{other} is missing: run launch/setup.sh --tests")
    return [None, str(other)]


class Pruned:
    layers = 4
    shape = {}

    def setUp(self):
        torch.set_num_threads(1)
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.path = pathlib.Path(self.scratch.name)
        self.model = self.path / "model"
        # The spelling of transformers 4: 4.57 would not see the rope of the other one in the unpruned config.
        make(self.model, self.family, seed=3, layers=self.layers, spelling=4, **self.shape)
        self.config = json.loads((self.model / "config.json").read_text())
        token_files.random_plain(self.path / "a.h5", 4, 20, self.config["vocab_size"], 5)
        self.case = compare.Case(os.environ["ESPALIER"], self.model, [self.path / "a.h5"], self.path)

    def masked_logits(self, removed, unit, dtype=torch.float64):
        with reference.quiet():
            model = reference.load(self.model, dtype)
        plan_files.mask(model, removed, unit)
        return reference.logits(model, self.path / "a.h5", 4)

    def sliced_logits(self, layout, *choice):
        out = self.path / "logits.h5"
        compare.run(self.case.espalier, layout[0] * layout[1], "eval", str(self.case.config("float64")), "--tensor",
                    str(layout[0]), "--logits", str(out), "--logit-rows", "4", *choice)
        with h5py.File(out) as file:
            values = torch.tensor(file["d0"][:])
        out.unlink()
        return values

    def read_by_transformers(self, export, form):
        tokens, _, _ = reference.read_tokens(self.path / "a.h5")
        torch.save(tokens, self.path / "tokens.pt")
        for extra in versions():
            environment = {**os.environ, **({"PYTHONPATH": extra} if extra else {}), "HF_HOME": str(self.path / "hf")}
            done = subprocess.run([sys.executable, "-c", READ_EXPORT, export, self.path / "tokens.pt", form, self.path / "out.pt"],
                                  env=environment, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr[-3000:])
            yield done.stdout.strip().splitlines()[-1], torch.load(self.path / "out.pt")

    def check(self, removed, unit, layouts):
        plan = self.path / f"plan-{unit}.h5"
        plan_files.write(plan, removed, unit, hashlib.sha256((self.model / "config.json").read_bytes()).hexdigest())
        wanted = self.masked_logits(removed, unit)
        bound = 1e-9 * wanted.abs().max().item()
        for layout in layouts:
            self.assertLessEqual(compare.difference(self.sliced_logits(layout, "--plan", str(plan)), wanted), bound, layout)
        export = self.path / f"export-{unit}"
        compare.run(self.case.espalier, 1, "export", str(plan), "--model", str(self.model), "--out", str(export))
        self.assertLessEqual(compare.difference(self.sliced_logits((2, 1), "--model", str(export)), wanted), bound)
        compare.run(self.case.espalier, 1, "verify", str(export), "--deep")
        # transformers reads float32 weights: it may be as wrong as its own masked model is in float32, four times over.
        narrow = 4 * compare.difference(self.masked_logits(removed, unit, torch.float32), wanted)
        for version, logits in self.read_by_transformers(export, "exact"):
            self.assertLessEqual(compare.difference(logits, wanted), narrow, version)

    def test_query_heads(self):
        removed = plan_files.draw(self.config, "query_head", 11, empty_attention=(1,), empty_mlp=(2,))
        self.check(removed, "query_head", compare.LAYOUTS)

    def test_first_and_last_layer_empty(self):
        removed = plan_files.draw(self.config, "query_head", 12, empty_attention=(0, self.layers - 1), empty_mlp=(0,))
        self.check(removed, "query_head", ((1, 1), (3, 1)))

    def test_kv_groups(self):
        removed = plan_files.draw(self.config, "kv_group", 13, empty_attention=(2,))
        self.check(removed, "kv_group", ((1, 1), (2, 2)))

    def test_uniform(self):
        removed = plan_files.draw(self.config, "kv_group", 14)
        for kind in removed:  # the same number everywhere, other units in every layer
            for layer in range(self.layers):
                removed[kind][layer] = False
                removed[kind][layer, layer % 2 :: 2] = True
        plan = self.path / "plan-uniform.h5"
        plan_files.write(plan, removed, "kv_group", "0" * 64)
        export = self.path / "uniform"
        compare.run(self.case.espalier, 1, "export", str(plan), "--model", str(self.model), "--out", str(export), "--format", "uniform")
        wanted = self.masked_logits(removed, "kv_group")
        narrow = 4 * compare.difference(self.masked_logits(removed, "kv_group", torch.float32), wanted)
        for version, logits in self.read_by_transformers(export, "uniform"):
            self.assertLessEqual(compare.difference(logits, wanted), narrow, version)
        self.assertLessEqual(compare.difference(self.sliced_logits((1, 1), "--model", str(export)), wanted),
                             1e-9 * wanted.abs().max().item())


class Llama(Pruned, unittest.TestCase):
    family = "llama"


class Mistral(Pruned, unittest.TestCase):
    family = "mistral"
    shape = {"heads": 6, "kv_heads": 2, "head_dim": 12, "tied": True}


class Qwen2(Pruned, unittest.TestCase):
    family = "qwen2"
    shape = {"heads": 8, "kv_heads": 4}


class Qwen3(Pruned, unittest.TestCase):
    family = "qwen3"
    shape = {"heads": 8, "kv_heads": 2}


if __name__ == "__main__":
    unittest.main()
