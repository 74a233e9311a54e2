"""The committed test model and its text are what their README says."""

import ast
import hashlib
import json
import operator
import pathlib
import re
import sys
import unittest

import numpy as np

MODELS = pathlib.Path(__file__).resolve().parents[1] / "models"
MODEL = MODELS / "tri-domain-qwen2"
sys.path.insert(0, str(MODELS))
import generate_text

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def lines_of(domain, split):
    path = MODEL / "text" / f"{domain}.{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def to_python(code):
    """The small language as Python, by its line forms alone."""
    lines = []
    for line in code.split("\n"):
        depth, line = len(line) - len(line.lstrip()), line.strip()
        if line == "}":
            continue
        line = re.sub(r"^} else if (.*) {$", r"elif \1:", line)
        line = re.sub(r"^} else {$", "else:", line)
        line = re.sub(r"^fn (.*) {$", r"def \1:", line)
        line = re.sub(r"^(if|for|while) (.*) {$", r"\1 \2:", line)
        line = re.sub(r"^push\((\w+), (.*)\);$", r"\1.append(\2)", line)
        line = re.sub(r"^let ", "", line)
        lines.append(" " * depth + line.rstrip(";"))
    return "\n".join(lines)


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.splits = generate_text.make_splits(0, 2000, 140000, 140000)

    def test_committed_text_is_what_the_generator_writes(self):
        for domain in generate_text.DOMAINS:
            for split in ("calibration", "heldout"):
                self.assertEqual(lines_of(domain, split), self.splits[domain][split])

    def test_splits_share_nothing(self):
        for domain, splits in self.splits.items():
            keys = [generate_text.key_of(d) for documents in splits.values() for d in documents]
            self.assertEqual(len(keys), len(set(keys)), domain)

    def test_more_training_text_leaves_the_rest_as_it_is(self):
        other = generate_text.make_splits(0, 50, 140000, 140000)
        for domain, splits in other.items():
            self.assertEqual(splits["heldout"], self.splits[domain]["heldout"])
            self.assertEqual(splits["train"], self.splits[domain]["train"][:50])

    def test_another_seed_gives_other_text(self):
        other = generate_text.make_splits(1, 5, 2000, 2000)
        for domain, splits in other.items():
            self.assertNotEqual(splits["train"], self.splits[domain]["train"][:5])

    def test_every_equation_is_true(self):
        equations = 0
        for document in self.splits["math"]["train"]:
            self.assertEqual(document["text"], document["question"] + "\n" + document["answer"])
            for left, right in re.findall(r"(\d[\d +*/-]*) = (-?\d+)", document["answer"]):
                value, *terms = left.strip().split(" ")
                value = int(value)
                for sign, term in zip(terms[::2], terms[1::2]):
                    value = OPERATORS[sign](value, int(term))
                self.assertEqual(value, int(right), document)
                equations += 1
            result = re.search(r"^What is (\d+) ([+*-]) (\d+)\?$", document["question"])
            if result:
                x, sign, y = result.groups()
                said = int(re.search(r"is (\d+)\.$", document["answer"]).group(1))
                self.assertEqual(said, OPERATORS[sign](int(x), int(y)))
        self.assertGreater(equations, 2000)

    def test_every_assertion_of_the_code_holds(self):
        for document in self.splits["code"]["train"][:1000]:
            program = ast.parse(to_python(document["text"]))
            self.assertTrue(any(isinstance(node, ast.Assert) for node in program.body))
            exec(compile(program, "document", "exec"), {})  # our own generated text

    def test_a_name_keeps_its_pronouns(self):
        words = {"she", "her", "he", "his", "him"}
        for document in self.splits["prose"]["train"][:500]:
            found = {w for w in re.findall(r"[a-z]+", document["text"].lower()) if w in words}
            names = set(re.findall(r"[A-Z][a-z]+", document["text"]))
            girls, boys = (
                names & set(generate_text.text_prose.GIRLS),
                names & set(generate_text.text_prose.BOYS),
            )
            if found & {"she", "her"}:
                self.assertTrue(girls, document)
            if found & {"he", "his", "him"}:
                self.assertTrue(boys, document)


class Model(unittest.TestCase):
    def setUp(self):
        self.facts = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
        self.config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
        self.raw = (MODEL / "model.safetensors").read_bytes()

    def tensors(self):
        """{name: bfloat16 bits}, read without any library."""
        size = int.from_bytes(self.raw[:8], "little")
        header = json.loads(self.raw[8 : 8 + size])
        header.pop("__metadata__", None)
        data = np.frombuffer(self.raw, dtype="<u2", offset=8 + size)
        for name, entry in header.items():
            self.assertEqual(entry["dtype"], "BF16")
            begin, end = (offset // 2 for offset in entry["data_offsets"])
            yield name, data[begin:end].reshape(entry["shape"])

    def test_weights_are_those_of_training_json(self):
        self.assertEqual(hashlib.sha256(self.raw).hexdigest(), self.facts["model_sha256"])
        self.assertLess(len(self.raw), 3_000_000)
        self.assertEqual(sum(t.size for _, t in self.tensors()), self.facts["parameters"])

    def test_weights_are_finite_and_biases_moved(self):
        for name, bits in self.tensors():
            self.assertFalse(((bits & 0x7F80) == 0x7F80).any(), name)
            if name.endswith(".bias"):
                self.assertGreater(np.count_nonzero(bits & 0x7FFF), 0.9 * bits.size, name)

    def test_it_has_learned(self):
        for domain, f in self.facts["domains"].items():
            self.assertLess(f["heldout_loss"], 0.25 * f["unigram_entropy"], domain)
            for kind, losses in self.facts["damage"].items():
                self.assertGreater(losses[domain], 1.05 * f["heldout_loss"], (kind, domain))

    def test_config_has_both_spellings(self):
        config = self.config
        self.assertEqual(config["rope_parameters"]["rope_theta"], config["rope_theta"])
        self.assertEqual((config["dtype"], config["torch_dtype"]), ("bfloat16", "bfloat16"))
        self.assertEqual(config["layer_types"], ["full_attention"] * config["num_hidden_layers"])
        self.assertEqual(config["head_dim"] * config["num_attention_heads"], config["hidden_size"])


if __name__ == "__main__":
    unittest.main()
