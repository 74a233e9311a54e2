"""Losses, logits and scores of espalier against transformers + autograd, on random models of every family and on trained
ones, at several layouts. With ESPALIER_TEST_FULL=1 the whole product of layouts, criteria, units and the dtypes float64 and
float32 runs on every checkpoint, each combination under one normalisation; without it every layout, criterion, unit,
normalisation and dtype occurs, but not every combination. bfloat16 and float16 are compared in test_narrow.py, on two
checkpoints and some layouts.

  ESPALIER=build/ci/bin/espalier .venv/bin/python -m unittest discover -s tests/oracle -p test_scores.py
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

UNITS = ("query_head", "kv_group")
FULL = os.environ.get("ESPALIER_TEST_FULL") == "1"
SOME = compare.LAYOUTS[:1] + compare.LAYOUTS[-1:]  # 1x1 and 3x1: an uneven cut, and a rank without heads


class Comparison:
    """The tests; subclasses say which checkpoint."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.case = cls.make_case(pathlib.Path(scratch.name))

    def setUp(self):
        self.table = compare.Table()

    def tearDown(self):
        self.assertEqual(self.table.failures, 0, "comparisons are outside their bounds, see the table above")

    def test_loss_and_logits(self):
        compare.compare_evaluation(self.case, self.table, "float64", compare.LAYOUTS)
        compare.compare_evaluation(self.case, self.table, "float32", compare.LAYOUTS if FULL else SOME)

    def scores(self, criterion, some):
        """`some`: (dtype, unit, layouts, normalization) of the combinations that always run; the others under `none`."""
        rows = [(d, u, compare.LAYOUTS if FULL else layouts, n) for d, u, layouts, n in some]
        if FULL:
            done = {(d, u) for d, u, _, _ in some}
            rows += [(d, u, compare.LAYOUTS, "none") for d in compare.DTYPES for u in UNITS if (d, u) not in done]
        for dtype, unit, layouts, normalization in rows:
            compare.compare_scores(self.case, self.table, dtype, criterion, unit, layouts, normalization)

    def test_taylor(self):
        self.scores("taylor", [("float64", "query_head", compare.LAYOUTS, "param_mean"), ("float64", "kv_group", SOME, "gisp"),
                               ("float32", "query_head", SOME, "none")])

    def test_taylor_gate(self):
        self.scores("taylor_gate", [("float64", "query_head", compare.LAYOUTS, "block_mean"), ("float32", "kv_group", SOME, "none")])

    def test_taylor_gate_sample(self):
        self.scores("taylor_gate_sample", [("float64", "query_head", ((2, 2),), "block_l2"),
                                           ("float64", "kv_group", ((2, 2),), "block_standardize")])

    def test_magnitude(self):
        self.scores("magnitude", [("float64", "query_head", ((4, 1),), "param_mean"), ("float64", "kv_group", ((4, 1),), "param_mean")])

    def test_activations(self):
        self.scores("wanda_sp", [("float64", "query_head", ((2, 2), (3, 1)), "param_mean"), ("float64", "kv_group", ((1, 2),), "none"),
                                 ("float32", "query_head", ((2, 1),), "none")])
        self.scores("flap", [("float64", "query_head", ((2, 2), (3, 1)), "none"), ("float64", "kv_group", ((1, 2),), "none")])

    def test_obs(self):
        self.scores("obs", [("float64", "query_head", compare.LAYOUTS, "cost"), ("float64", "kv_group", ((2, 2), (3, 1)), "cost")])
        self.scores("obs scalar", [("float64", "query_head", ((2, 1),), "param_mean")])

    def test_combined_domains(self):
        for criterion, combine, layout in (("taylor", "weighted_mean", (1, 2)), ("taylor_gate", "weighted_mean", (2, 1)),
                                           ("taylor", "worst_domain", (2, 1)), ("taylor_gate_sample", "max", (2, 2)),
                                           ("obs", "weighted_mean", (2, 2)), ("obs", "worst_domain", (1, 2)),
                                           ("wanda_sp", "rank_mean", (1, 2)), ("flap", "max", (2, 1))):
            compare.compare_combined(self.case, self.table, criterion, combine, compare.LAYOUTS if FULL else (layout,))


class RandomModel(Comparison):
    shape = {}

    @classmethod
    def make_case(cls, scratch):
        model = scratch / "model"
        make(model, cls.family, seed=1, **cls.shape)
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        token_files.random_plain(scratch / "a.h5", 5, 20, vocabulary, 1)
        token_files.random_answers(scratch / "b.h5", 3, 26, vocabulary, 2)
        return compare.Case(os.environ["ESPALIER"], model, [scratch / "a.h5", scratch / "b.h5"], scratch,
                            objectives=["causal_lm", "sft"])


class Llama(RandomModel, unittest.TestCase):
    family = "llama"
    shape = {"vocab": 131, "channels": 97}  # nothing divides


class Llama2(RandomModel, unittest.TestCase):
    family = "llama2"
    shape = {"tied": True}


class Mistral(RandomModel, unittest.TestCase):
    family = "mistral"
    shape = {"heads": 6, "kv_heads": 3, "head_dim": 16, "shards": 3}


class Qwen2(RandomModel, unittest.TestCase):
    family = "qwen2"
    shape = {"spelling": 5}


class Qwen3(RandomModel, unittest.TestCase):
    family = "qwen3"
    shape = {"heads": 8, "kv_heads": 4, "tied": True}


class OwnSlice(unittest.TestCase):
    def test_a_rank_reads_its_share_of_the_file(self):
        """Bytes as the kernel counts them while a rank loads, on a model whose matrices are split in two."""
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            make(scratch / "model", "qwen2", seed=1, hidden=256, heads=8, kv_heads=4, channels=704, vocab=2048)
            size = (scratch / "model" / "model.safetensors").stat().st_size
            token_files.random_plain(scratch / "a.h5", 1, 8, 2048, 1)
            case = compare.Case(os.environ["ESPALIER"], scratch / "model", [scratch / "a.h5"], scratch)
            for tensor, share in ((1, 1.0), (2, 0.55), (4, 0.30)):
                out = scratch / f"eval{tensor}.json"
                compare.run(case.espalier, tensor, "eval", str(case.config("float32")), "--tensor", str(tensor), "--out", str(out))
                read = json.loads(out.read_text())["load"]["largest_bytes_read"]
                print(f"tensor = {tensor}: the busiest rank read {read / size:.3f} of the file")
                self.assertLessEqual(read, share * size + 4096)
                self.assertGreater(read, 0.9 / tensor * size)


class TrainedModel(Comparison):
    @classmethod
    def make_case(cls, scratch):
        model, texts = cls.locate()
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        paths = []
        for i, text in enumerate(texts):
            paths.append(scratch / f"{i}.h5")
            token_files.from_text(paths[-1], model, text, 3, 48, vocabulary)
        return compare.Case(os.environ["ESPALIER"], model, paths, scratch)


class TriDomain(TrainedModel, unittest.TestCase):
    @classmethod
    def locate(cls):
        model = HERE.parent / "models" / "tri-domain-qwen2"
        return model, [model / "text" / f"{domain}.calibration.jsonl" for domain in ("prose", "code")]


class Stories(TrainedModel, unittest.TestCase):
    @classmethod
    def locate(cls):
        data = os.environ.get("ESPALIER_TEST_DATA")
        if not data:
            raise unittest.SkipTest("ESPALIER_TEST_DATA is not set: no trained Llama to compare on")
        return pathlib.Path(data) / "models" / "stories260K", [pathlib.Path(data) / "data" / "lm" / "tinystories_sample.jsonl"]


if __name__ == "__main__":
    unittest.main()
