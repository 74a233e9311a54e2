"""Objective margin against transformers + autograd: items of two to five options of different lengths, of which one or more are
right, alone and beside other domains.

  ESPALIER=build/ci/bin/espalier .venv/bin/python -m unittest discover -s tests/oracle -p test_margin.py
"""

import json
import os
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]

import torch  # noqa: E402

import compare  # noqa: E402
import token_files  # noqa: E402
from make_random import make  # noqa: E402

class Margin:
    """Subclasses name a family; `shape` is what differs from make_random's defaults."""

    shape = {}

    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        folder = pathlib.Path(scratch.name)
        make(folder / "model", cls.family, seed=1, **cls.shape)
        vocabulary = json.loads((folder / "model/config.json").read_text())["vocab_size"]
        token_files.random_options(folder / "options.h5", 9, vocabulary, 3)
        token_files.random_options(folder / "unnamed.h5", 4, vocabulary, 4, normalizers=False)
        token_files.random_answers(folder / "answers.h5", 3, 26, vocabulary, 2)
        token_files.random_plain(folder / "plain.h5", 4, 20, vocabulary, 1)

        def case(objectives, **options):
            return compare.Case(os.environ["ESPALIER"], folder / "model", [folder / name for name in objectives], folder,
                                objectives=list(objectives.values()), **options)

        cls.alone = case({"options.h5": "margin"})
        # Micro-batches smaller than some items, which go through the model whole all the same.
        cls.mixed = case({"options.h5": "margin", "answers.h5": "sft", "unnamed.h5": "margin", "plain.h5": "causal_lm"},
                         micro_batch_tokens=40)

    def setUp(self):
        self.table = compare.Table()

    def tearDown(self):
        self.assertEqual(self.table.failures, 0, "comparisons are outside their bounds, see the table above")

    def compare(self, case, criterion, unit, layouts, normalization="none", dtype="float64"):
        compare.compare_scores(case, self.table, dtype, criterion, unit, layouts, normalization)

    def test_taylor(self):
        self.compare(self.alone, "taylor", "query_head", ((1, 1), (2, 1), (1, 2), (3, 1)), "param_mean")
        self.compare(self.mixed, "taylor", "kv_group", ((1, 1), (2, 2)), "gisp")
        self.compare(self.mixed, "taylor", "query_head", ((1, 2),), dtype="float32")

    def test_gates(self):
        """Of taylor_gate_sample a sample is an item: the absolute value comes after the sum over its options."""
        self.compare(self.alone, "taylor_gate", "kv_group", ((1, 2), (2, 1)))
        self.compare(self.alone, "taylor_gate_sample", "query_head", ((1, 1), (1, 3)))
        self.compare(self.mixed, "taylor_gate_sample", "kv_group", ((2, 2),), "block_mean")

    def test_forward_criteria(self):
        self.compare(self.mixed, "wanda_sp", "query_head", ((1, 2),))
        self.compare(self.mixed, "flap", "query_head", ((2, 1),))

    def test_prompts_may_be_shared(self):
        """Once or for each option, a prompt is the same computation: the scores differ by rounding of float64."""
        for criterion, layout in (("taylor", (1, 1)), ("taylor", (2, 2)), ("taylor_gate", (1, 2)), ("taylor_gate_sample", (2, 1))):
            raw, losses = {}, {}
            for shared in (True, False):
                raw[shared], _, losses[shared] = self.mixed.scores(layout, dtype="float64", criterion=criterion,
                                                                   execution={"share_prompts": shared})
            for kind, values in raw[True].items():
                self.table.row(f"{layout[0]}x{layout[1]} {criterion} {kind} shared", compare.difference(values, raw[False][kind]),
                               1e-12 * values.abs().max().item())
            worst = max(abs(a - b) for a, b in zip(losses[True], losses[False]))
            self.table.row(f"{layout[0]}x{layout[1]} {criterion} losses shared", worst, 1e-12 * max(map(abs, losses[True])))

    def test_combined_domains(self):
        compare.compare_combined(self.mixed, self.table, "taylor", "weighted_mean", ((1, 2),))
        compare.compare_combined(self.mixed, self.table, "taylor_gate_sample", "worst_domain", ((2, 1),))


class Llama(Margin, unittest.TestCase):
    family = "llama2"


class Mistral(Margin, unittest.TestCase):
    family = "mistral"
    shape = {"heads": 6, "kv_heads": 3, "head_dim": 16}


class Qwen2(Margin, unittest.TestCase):
    family = "qwen2"


class Qwen3(Margin, unittest.TestCase):
    family = "qwen3"
    shape = {"heads": 8, "kv_heads": 4, "tied": True}


if __name__ == "__main__":
    unittest.main()
