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


def versions():
    """PYTHONPATH additions, one per supported transformers; a missing one is an error, not fewer comparisons."""
    other = pathlib.Path(sys.prefix) / "transformers-4.57.1"
    if not other.is_dir():
        raise RuntimeError(f"{other} is missing: run launch/setup.sh --tests")
    return [None, str(other)]


class Reader:
    """open_exports.py under way with one version of transformers. Whatever it does not answer is an error."""

    def __init__(self, extra, checkpoint, folder):
        folder.mkdir()
        self.folder, self.count = folder, 0
        environment = {**os.environ, **({"PYTHONPATH": extra} if extra else {}), "HF_HOME": str(folder / "hf")}
        with open(folder / "stderr", "w") as stderr:
            self.process = subprocess.Popen([sys.executable, HERE / "open_exports.py", checkpoint], env=environment, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        self.name = f"transformers at {extra}" if extra else "transformers"

    def close(self):
        self.process.communicate(timeout=60)  # ends at the end of its input

    def fail(self, what):
        raise AssertionError(f"{self.name}: {what}\n{(self.folder / 'stderr').read_text()[-3000:]}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.fail(f"the reader ended with exit code {self.process.wait(60)}")
        return json.loads(line)

    def started(self):
        self.name = f"transformers {self.answer()['transformers']}"

    def logits(self, export, form, tokens):
        self.count += 1
        out = self.folder / f"{self.count}.pt"  # never the file of another export
        request = {"export": export, "form": form, "tokens": tokens, "out": out}
        try:
            print(json.dumps({k: str(v) for k, v in request.items()}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # answer() says why
        code = self.answer()["code"]
        if code != 0:
            self.fail(f"{export} cannot be read as {form}: exit code {code}")
        return torch.load(out)


class Opened:
    """A checkpoint, and what the program and transformers make of it."""

    layers = 4
    shape = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.class_path = pathlib.Path(scratch.name)
        cls.model = cls.class_path / "model"
        # The spelling of transformers 4: 4.57 would not see the rope of the other one in the unpruned config.
        make(cls.model, cls.family, seed=3, layers=cls.layers, spelling=4, **cls.shape)
        cls.config = json.loads((cls.model / "config.json").read_text())
        cls.token_file = cls.class_path / "a.h5"
        token_files.random_plain(cls.token_file, 4, 20, cls.config["vocab_size"], 5)
        tokens, _, _ = reference.read_tokens(cls.token_file)
        torch.save(tokens, cls.class_path / "tokens.pt")
        cls.case = compare.Case(os.environ["ESPALIER"], cls.model, [cls.token_file], cls.class_path)
        cls.readers = []
        for number, extra in enumerate(versions()):
            cls.readers.append(Reader(extra, cls.model, cls.class_path / f"reader{number}"))
            cls.addClassCleanup(cls.readers[-1].close)
        for reader in cls.readers:
            reader.started()

    def setUp(self):
        self.path = self.class_path / self._testMethodName
        self.path.mkdir()

    def masked_logits(self, removed, unit, dtype=torch.float64):
        with reference.quiet():
            model = reference.load(self.model, dtype)
        plan_files.mask(model, removed, unit)
        return reference.logits(model, self.token_file, 4)

    def sliced_logits(self, layout, *choice):
        out = self.path / "logits.h5"
        compare.run(self.case.espalier, layout[0] * layout[1], "eval", str(self.case.config("float64")), "--tensor",
                    str(layout[0]), "--logits", str(out), "--logit-rows", "4", *choice)
        with h5py.File(out) as file:
            values = torch.tensor(file["d0"][:])
        out.unlink()
        return values

    def read_by_transformers(self, export, form):
        for reader in self.readers:
            yield reader.name, reader.logits(export, form, self.class_path / "tokens.pt")


class Pruned(Opened):
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

    def test_equal_per_group(self):
        removed = plan_files.draw(self.config, "equal_per_group", 15, empty_attention=(1,), empty_mlp=(2,))
        self.check(removed, "equal_per_group", ((1, 1), (2, 2)))

    def test_uniform_with_fewer_heads_per_group(self):
        removed = plan_files.draw(self.config, "equal_per_group", 16)
        group = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        for layer in range(self.layers):  # one head of each group, another one in every layer
            removed["attention"][layer] = [h % group == (layer + h // group) % group for h in range(len(removed["attention"][layer]))]
            removed["mlp"][layer] = False
            removed["mlp"][layer, layer % 2 :: 2] = True
        self.check_uniform(removed, "equal_per_group")

    def test_uniform(self):
        removed = plan_files.draw(self.config, "kv_group", 14)
        for kind in removed:  # the same number everywhere, other units in every layer
            for layer in range(self.layers):
                removed[kind][layer] = False
                removed[kind][layer, layer % 2 :: 2] = True
        self.check_uniform(removed, "kv_group")

    def check_uniform(self, removed, unit):
        plan = self.path / "plan-uniform.h5"
        plan_files.write(plan, removed, unit, "0" * 64)
        export = self.path / "uniform"
        compare.run(self.case.espalier, 1, "export", str(plan), "--model", str(self.model), "--out", str(export), "--format", "uniform")
        wanted = self.masked_logits(removed, unit)
        narrow = 4 * compare.difference(self.masked_logits(removed, unit, torch.float32), wanted)
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
