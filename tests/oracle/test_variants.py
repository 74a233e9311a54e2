"""Model directories as other programs leave them (variants.py): espalier computes what transformers computes, or refuses.

Every variant that is read has the logits of transformers in float64, in every supported version that reads it; every other one
ends with the code of a wrong input and a message that names what is wrong and what to do. No command ends in a bug.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import zlib

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models"), str(HERE.parent / "support")]

import h5py  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402

import plan_files  # noqa: E402
import token_files  # noqa: E402
import variants  # noqa: E402
import workbench  # noqa: E402

REFUSALS = (65, 66, 78)
SEEDS = {family: 10 + i for i, family in enumerate(variants.FAMILIES)}


def other_transformers():
    path = pathlib.Path(sys.prefix) / "transformers-4.57.1"
    if not path.is_dir():
        raise RuntimeError(f"{path} is missing: run launch/setup.sh --tests")
    return path


def plan_for(model, path):
    """A plan that takes one head and some channels of every layer, for a model as its config.json describes it."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8-sig"))
    removed = plan_files.draw({"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
                               "num_hidden_layers": config["num_hidden_layers"]}, "kv_group", 5, share=0.0)
    for kind in removed:
        removed[kind][:, 0] = True
    plan_files.write(path, removed, "kv_group", hashlib.sha256((model / "config.json").read_bytes()).hexdigest())
    return path


class Variants:
    """One group of variants: all are written and read by transformers at once, then the program reads each."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.path = pathlib.Path(scratch.name)
        # The spelling of transformers 4: both versions read its rotary settings.
        bases = {family: workbench.make_model(cls.path / f"base-{family}", family, seed, spelling=4)
                 for family, seed in SEEDS.items()}
        token_files.random_plain(cls.path / "tokens.h5", 3, 12, 64, 7)
        with h5py.File(cls.path / "tokens.h5") as file:
            torch.save(torch.tensor(file["tokens"][:], dtype=torch.long), cls.path / "tokens.pt")
        cls.outcomes, cls.first = {}, set()
        for name, families, outcome, change in variants.GROUPS[cls.__name__]:
            cls.first.add(f"{name}.{families[0]}")  # the other commands open a model as eval does: one family will do
            for family in families:
                draft = variants.Draft(bases[family])
                change(draft)
                draft.write(cls.path / f"{name}.{family}")
                cls.outcomes[f"{name}.{family}"] = outcome
        names = [*cls.outcomes, *[f"base-{family}" for family in variants.FAMILIES]]
        cls.newer, cls.older = cls.read(names, None), cls.read(names, other_transformers())

    @classmethod
    def read(cls, names, extra):
        """{name: what one version of transformers makes of the directory}"""
        out = pathlib.Path(tempfile.mkdtemp(dir=cls.path))
        environment = {**os.environ, "HF_HOME": str(out / "hf"), **({"PYTHONPATH": str(extra)} if extra else {})}
        subprocess.run([sys.executable, HERE / "read_variants.py", cls.path / "tokens.pt", out], env=environment, text=True,
                       input="".join(f"{cls.path / name}\n" for name in names), check=True, stderr=subprocess.DEVNULL)
        return {name: torch.load(out / f"{name}.pt") for name in names}

    def logits(self, name):
        """(logits or None, the run) of `espalier eval`."""
        model, out = self.path / name, self.path / f"{name}.h5"
        config = self.path / f"{name}.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(model), "dtype": "float64"}, "device": "cpu",
            "evaluation": {"perplexity": [{"name": "d", "tokens": str(self.path / "tokens.h5")}]}}))
        result = workbench.run("--quiet", "eval", config, "--logits", out, "--logit-rows", "3", timeout=300)
        if result.code != 0:
            return None, result
        with h5py.File(out) as file:
            values = torch.tensor(numpy.asarray(file["d"][:]))
        out.unlink()
        return values, result

    def check_refusal(self, result, words):
        self.assertIn(result.code, REFUSALS, result)
        for word in words:
            self.assertIn(word, result.text)
        self.assertNotIn("internal", result.text)
        # One block per problem: what, why, where, do. Every problem says what to do.
        problems = max(1, len(re.findall(r"^  what ", result.err, re.M)))
        self.assertEqual(len(re.findall(r"^  do +\S", result.err, re.M)), problems, f"a problem without a remedy: {result}")

    def check_read(self, name, found, result):
        self.assertEqual(result.code, 0, result)
        outcome = self.outcomes[name]
        readers = [r for r in (self.newer[name], self.older[name]) if "logits" in r]
        if outcome == variants.AS_BASE:
            self.assertEqual(readers, [], "a version of transformers reads it: compare with that")
            readers = [self.newer[f"base-{name.rpartition('.')[2]}"]]
        if outcome == variants.NEWER:
            readers = [self.newer[name]]
        self.assertNotEqual(readers, [], f"{self.newer[name]}\n{self.older[name]}")
        for reader in readers:
            wanted = reader["logits"]
            self.assertLessEqual((found - wanted).abs().max().item(), 1e-9 * wanted.abs().max().item(), reader["version"])

    def check_commands(self, name, readable):
        """The other commands that open a model agree with eval, and an export of it is complete."""
        model = self.path / name
        for words in (("verify", model, "--deep"), ("inspect", model)):
            code = workbench.run("--quiet", *words, timeout=300)
            self.assertEqual(code.code == 0, readable, code)
            self.assertIn(code.code, (0, *REFUSALS), code)
        if not readable:
            return
        out = self.path / f"{name}-export"
        result = workbench.run("--quiet", "export", plan_for(model, self.path / f"{name}-plan.h5"), "--model", model, "--out", out,
                               timeout=300)
        self.assertEqual(result.code, 0, result)
        result = workbench.run("--quiet", "verify", out, "--deep", timeout=300)
        self.assertEqual(result.code, 0, result)

    def check(self, name):
        found, result = self.logits(name)
        outcome = self.outcomes[name]
        if isinstance(outcome, tuple):
            self.check_refusal(result, outcome)
        else:
            self.check_read(name, found, result)
        # The other commands read a directory through the same code: a quarter of the variants, all in the long form.
        if name in self.first and (workbench.FULL or zlib.crc32(name.encode()) % 4 == 0):
            self.check_commands(name, found is not None)

    def test_all(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            jobs = {name: pool.submit(self.check, name) for name in self.outcomes}
        for name, job in jobs.items():
            with self.subTest(name):
                job.result()


class Rope(Variants, unittest.TestCase):
    pass


class Fields(Variants, unittest.TestCase):
    pass


class Tensors(Variants, unittest.TestCase):
    pass


class Shards(Variants, unittest.TestCase):
    pass


if __name__ == "__main__":
    unittest.main()
