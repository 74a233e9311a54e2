"""Greedy generation with espalier's cache = transformers generate(do_sample=False), token by token, in float64.

Every token's piece is its number in fixed width with a full stop, all of it what the filter flexible-extract takes: so the
"number" that is compared is the whole continuation, and an answer is right only if every token is. The reference generates
each prompt alone, from weights masked or as exported; near-ties would make equality luck, so the smallest distance between the
two best logits is asserted.
"""

import hashlib
import json
import math
import os
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]

import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import compare  # noqa: E402
import plan_files  # noqa: E402
import reference  # noqa: E402
import token_files  # noqa: E402
from make_random import make  # noqa: E402

NEW = 24
GAP = 1e-8  # of logits; rounding in float64 is below 1e-12 here


def generate(model, prompts):
    """Each prompt's NEW most likely tokens, alone; and the smallest gap between the best two logits."""
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None, bos_token_id=None)
    sequences, gap = [], math.inf
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, return_dict_in_generate=True,
                                 output_logits=True)
        sequences.append(out.sequences[0, len(prompt):].tolist())
        best = torch.stack(out.logits).topk(2).values
        gap = min(gap, (best[..., 0] - best[..., 1]).min().item())
    return sequences, gap


class Piece:
    def __init__(self, vocabulary):
        self.width = len(str(vocabulary - 1))

    def of(self, token):
        return f"{token:0{self.width}d}."

    def answer(self, tokens, eos, stop):
        """What is expected of a continuation that ends before the first of these tokens."""
        ends = [i for i, token in enumerate(tokens) if token in (eos, stop)]
        return "".join(map(self.of, tokens[: ends[0]] if ends else tokens)) or "[invalid]"


def ending_tokens(sequences):
    """The two commonest tokens from the third on, so that rows leave the batch at different steps, and some do not."""
    counts = numpy.bincount(numpy.concatenate([sequence[2:] for sequence in sequences]))
    return numpy.argsort(-counts, kind="stable")[:2].tolist()


class Generation:
    """A checkpoint, prompts of different lengths, and what is generated at several layouts."""

    layouts = ((1, 1), (2, 1), (1, 2))
    rows = 9
    micro_batch_tokens = 128  # two to four rows together

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.path = pathlib.Path(scratch.name)
        os.environ["HF_HOME"] = str(cls.path / "hf")
        cls.model = cls.locate()
        cls.config = json.loads((cls.model / "config.json").read_text())
        cls.vocabulary = cls.config["vocab_size"]
        generator = numpy.random.default_rng(8)
        lengths = [1, 30, *generator.integers(2, 30, cls.rows - 2)]
        cls.prompts = [generator.integers(0, cls.vocabulary, n).tolist() for n in lengths]

    def evaluated(self, sequences, layout, *choice):
        """Evaluations with and without ends, and one with two wrong answers, in one start of the program."""
        piece = Piece(self.vocabulary)
        eos, stop = ending_tokens(sequences)
        whole = [piece.answer(s, None, None) for s in sequences]
        ended = [piece.answer(s, eos, stop) for s in sequences]
        self.assertGreater(len({len(answer) for answer in ended}), 2, "rows must end at different steps")
        wrong = [*whole[:-2], *(answer[:-2] + ("7." if answer[-2] != "7" else "8.") for answer in whole[-2:])]
        cases = {"whole": (whole, [], []), "ended": (ended, [piece.of(stop)], [eos]), "wrong": (wrong, [], [])}
        for name, (answers, stops, ends) in cases.items():
            token_files.write_prompts(self.path / f"{name}.h5", self.prompts, answers,
                                      [piece.of(t).encode() for t in range(self.vocabulary)], self.vocabulary, stops, ends)
        config = self.path / "config.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(self.model.absolute()), "dtype": "float64"},
            "device": "cpu",
            "calibration": {"micro_batch_tokens": self.micro_batch_tokens},
            "evaluation": {"exact_match": [{"name": n, "tokens": f"{n}.h5", "max_new_tokens": NEW} for n in cases]},
        }))
        out, items = self.path / "eval.json", self.path / "items.jsonl"
        compare.run(os.environ["ESPALIER"], layout[0] * layout[1], "eval", str(config), "--tensor", str(layout[0]), "--out",
                    str(out), "--items", str(items), *choice)
        result = json.loads(out.read_text())
        lines = [json.loads(line) for line in items.read_text().splitlines()]
        self.items = {name: [line for line in lines if line["task"] == name] for name in cases}
        out.unlink()
        items.unlink()
        return result

    def check(self, sequences, gap, layout, *choice):
        self.assertGreater(gap, GAP)
        result = self.evaluated(sequences, layout, *choice)
        found = result["exact_match"]
        share = (self.rows - 2) / self.rows
        error = math.sqrt(share * (1 - share) / (self.rows - 1))
        self.assertEqual(found["whole"]["flexible"], 1.0, layout)
        self.assertEqual(found["ended"]["flexible"], 1.0, layout)
        self.assertAlmostEqual(found["wrong"]["flexible"], share, delta=1e-15)
        self.assertAlmostEqual(found["wrong"]["flexible_stderr"], error, delta=1e-15)
        self.assertEqual({f["items"] for f in found.values()}, {self.rows})
        self.assertIn({"task": "ended", "metric": "flexible", "value": 1.0, "stderr": 0.0, "n": self.rows}, result["results"])
        for item in self.items["whole"]:
            self.assertEqual(item["tokens"], sequences[item["item"]], layout)

    def load(self, path, trust=False):
        with reference.quiet():
            return reference.widen(transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float64, attn_implementation="sdpa", trust_remote_code=trust).eval())

    def test_dense(self):
        sequences, gap = generate(self.load(self.model), self.prompts)
        for layout in self.layouts:
            self.check(sequences, gap, layout)


class Random(Generation):
    """Also pruned: uneven groups, KV heads that nobody reads, a layer without heads and one without channels."""

    shape = {}

    @classmethod
    def locate(cls):
        make(cls.path / "model", cls.family, seed=3, layers=4, **cls.shape)
        return cls.path / "model"

    def test_pruned(self):
        removed = plan_files.draw(self.config, "query_head", 4, empty_attention=[1], empty_mlp=[2])
        plan = self.path / "plan.h5"
        plan_files.write(plan, removed, "query_head",
                         hashlib.sha256((self.model / "config.json").read_bytes()).hexdigest())
        masked = self.load(self.model)
        plan_files.mask(masked, removed, "query_head")
        sequences, gap = generate(masked, self.prompts)
        for layout in ((2, 2), (3, 1)):
            self.check(sequences, gap, layout, "--plan", str(plan))
        export = self.path / "export"
        compare.run(os.environ["ESPALIER"], 1, "export", str(plan), "--model", str(self.model), "--out", str(export))
        exported, _ = generate(self.load(export, trust=True), self.prompts)
        self.assertEqual(exported, sequences)
        self.check(exported, gap, (1, 1), "--model", str(export))


class Llama(Random, unittest.TestCase):
    family = "llama"


class Mistral(Random, unittest.TestCase):
    family = "mistral"


class Qwen2(Random, unittest.TestCase):
    family = "qwen2"


class Qwen3(Random, unittest.TestCase):
    family = "qwen3"
    shape = {"heads": 6, "kv_heads": 2}


class TriDomain(Generation, unittest.TestCase):
    layouts = ((1, 1), (2, 2))

    @classmethod
    def locate(cls):
        return HERE.parent / "models" / "tri-domain-qwen2"


class Stories(Generation, unittest.TestCase):
    layouts = ((1, 1), (3, 1))

    @classmethod
    def locate(cls):
        data = os.environ.get("ESPALIER_TEST_DATA")
        if not data:
            raise unittest.SkipTest("ESPALIER_TEST_DATA is not set: no trained Llama to compare on")
        return pathlib.Path(data) / "models" / "stories260K"


if __name__ == "__main__":
    unittest.main()
