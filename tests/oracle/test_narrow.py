"""Scores in bfloat16 and float16 over many rows, against float64 on the same weights.

Each token's coefficient in the mean loss is 1 / (rows x tokens). With 16,384 counted tokens that is 2^-14, the smallest normal
number of float16: a pass that hands such coefficients to float16 loses bits that bfloat16, with fewer of them, keeps. The
bound is four times the error of transformers in the same type with its loss scaled by a power of two and its gradients added
in float64: what the narrow arithmetic of the model itself costs.

  ESPALIER=build/ci/bin/espalier .venv/bin/python -m unittest discover -s tests/oracle -p test_narrow.py
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
import reference  # noqa: E402
import token_files  # noqa: E402
from make_random import make  # noqa: E402

ROWS, WINDOW = 512, 33  # 512 x 32 counted tokens = 2^14
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CRITERIA = ("taylor", "taylor_gate", "taylor_gate_sample")
LAYOUTS = {"taylor": ((1, 1), (2, 2)), "taylor_gate": ((1, 1), (3, 1)), "taylor_gate_sample": ((1, 1), (1, 3))}


def rank_correlation(a, b):
    places = [x.flatten().argsort().argsort().double() for x in (a, b)]
    return torch.corrcoef(torch.stack(places))[0, 1].item()


class Narrow:
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        scratch = pathlib.Path(scratch.name)
        # Units enough that the largest error among them is no matter of luck: of four, transformers' may be a quarter of usual.
        make(scratch / "model", cls.family, seed=4, dtype=cls.dtype, layers=2, heads=12, kv_heads=6, hidden=32, channels=64, vocab=64)
        vocabulary = json.loads((scratch / "model" / "config.json").read_text())["vocab_size"]
        token_files.random_plain(scratch / "a.h5", ROWS, WINDOW, vocabulary, 6)
        cls.case = compare.Case(os.environ["ESPALIER"], scratch / "model", [scratch / "a.h5"], scratch,
                                micro_batch_tokens=64 * WINDOW)
        with reference.quiet():
            exact = reference.load(scratch / "model", torch.float64)
            narrow = reference.load(scratch / "model", TYPES[cls.dtype])
        domain = cls.case.domains()[0]
        cls.truth = reference.many_rows_scores(exact, domain, cls.unit)
        cls.theirs = reference.many_rows_scores(narrow, domain, cls.unit, scale=float(ROWS * (WINDOW - 1)))

    def test_scores(self):
        table = compare.Table()
        for criterion in CRITERIA:
            for layout in LAYOUTS[criterion]:
                raw, _, _ = self.case.scores(layout, dtype=self.dtype, criterion=criterion, unit=self.unit)
                for kind, truth in self.truth[criterion].items():
                    theirs = self.theirs[criterion][kind]
                    found = raw[kind][0]
                    print(f"{self.dtype} {layout} {criterion} {kind}: rank correlation {rank_correlation(found, truth):.6f}, "
                          f"transformers {rank_correlation(theirs, truth):.6f}")
                    scale = truth.abs().max().item()
                    table.row(f"{self.dtype} {layout[0]}x{layout[1]} {criterion} {self.unit} {kind}",
                              compare.difference(found, truth) / scale, 4 * compare.difference(theirs, truth) / scale)
        self.assertEqual(table.failures, 0, "scores are outside their bounds, see the table above")


class Float16(Narrow, unittest.TestCase):
    dtype, family, unit = "float16", "qwen2", "query_head"

    def test_accumulators_over_many_micro_batches(self):
        """512 of them: float32 still feels the last one; what bfloat16 loses is printed, and is more."""
        self.case.micro_batch_tokens = WINDOW
        self.addCleanup(setattr, self.case, "micro_batch_tokens", 64 * WINDOW)
        error = {}
        for accumulate in ("float32", "float64", "bfloat16"):
            raw, _, _ = self.case.scores((1, 1), dtype=self.dtype, criterion="taylor", extra={"accumulate": accumulate})
            for kind, truth in self.truth["taylor"].items():
                error[accumulate, kind] = compare.difference(raw[kind][0], truth) / truth.abs().max().item()
                print(f"accumulate {accumulate:<8} {kind:<9}: error {error[accumulate, kind]:.2e} of the largest score, rank "
                      f"correlation {rank_correlation(raw[kind][0], truth):.6f}")
        for kind, truth in self.truth["taylor"].items():
            bound = 4 * compare.difference(self.theirs["taylor"][kind], truth) / truth.abs().max().item()
            self.assertLessEqual(error["float32", kind], bound, kind)
            self.assertLessEqual(error["float64", kind], bound, kind)
            self.assertGreater(error["bfloat16", kind], error["float32", kind], kind)


class Float16Groups(Narrow, unittest.TestCase):
    dtype, family, unit = "float16", "qwen3", "kv_group"


class Bfloat16(Narrow, unittest.TestCase):
    dtype, family, unit = "bfloat16", "qwen2", "query_head"


class Bfloat16Groups(Narrow, unittest.TestCase):
    dtype, family, unit = "bfloat16", "qwen3", "kv_group"


if __name__ == "__main__":
    unittest.main()
