"""Multiple choice against lm-evaluation-harness itself: the same checkpoint, the same items, every option's log likelihood and
every item's choice. Skipped where it is not installed (launch/setup.sh --tests --harness) or ESPALIER_TEST_DATA is unset.
"""

import importlib.util
import json
import os
import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]
HARNESS = pathlib.Path(sys.prefix) / "lm-eval-0.4.13"
sys.path.append(str(HARNESS))

import numpy  # noqa: E402

import token_files  # noqa: E402
from workbench import Case, main  # noqa: E402

DATA = os.environ.get("ESPALIER_TEST_DATA", "")
ITEMS = 24  # of each task


def question(doc):
    """arc_easy, arc_challenge, piqa."""
    return f"Question: {doc['question']}\nAnswer:", [f" {c}" for c in doc["choices"]]


def continuation(doc):
    """hellaswag, openbookqa."""
    return doc.get("context", doc.get("question")), [f" {c}" for c in doc["choices"]]


def passage(doc):
    """boolq."""
    return f"{doc['passage']}\nQuestion: {doc['question']}?\nAnswer:", [" no", " yes"]


TASKS = {
    "arc_easy": ("arc_easy_validation", question),
    "piqa": ("piqa_validation", question),
    "hellaswag": ("hellaswag_validation", continuation),
    "openbookqa": ("openbookqa_validation", continuation),
    "boolq": ("boolq_validation", passage),
}


def documents(name):
    with open(pathlib.Path(DATA) / "data/mcq" / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(ITEMS), lines)]


@unittest.skipUnless(DATA, "ESPALIER_TEST_DATA is not set: no items and no trained model")
@unittest.skipUnless(importlib.util.find_spec("lm_eval"), "lm-evaluation-harness is not installed (launch/setup.sh --tests --harness)")
class Harness(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(2)
        cls.model = str(pathlib.Path(DATA) / "models/tri-qwen2")
        harness = HFLM(pretrained=cls.model, dtype="float32", device="cpu", batch_size=8, max_length=256)
        vocabulary = json.loads((pathlib.Path(cls.model) / "config.json").read_text())["vocab_size"]
        cls.expected, cls.lists = {}, []
        for task, (name, form) in TASKS.items():
            items, requests, written = documents(name), [], []
            for number, doc in enumerate(items):
                context, options = form(doc)
                pairs = [harness._encode_pair(context, option) for option in options]
                if max(len(a) + len(b) for a, b in pairs) > 256:
                    continue  # the harness would cut its beginning off
                right = int(doc["answer"])
                written.append([(a, b, int(k == right), len(options[k]) - 1) for k, (a, b) in enumerate(pairs)])
                requests += [Instance("loglikelihood", doc, (context, option), k, (task, number, 1)) for k, option in enumerate(options)]
            path = cls.class_folder / f"{task}.h5"
            token_files.write_options(path, written, vocabulary)
            values = iter([value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)])
            cls.expected[task] = [([next(values) for _ in item], item) for item in written]
            cls.lists.append({"name": task, "tokens": str(path)})

    def test_every_option_and_item(self):
        config = self.folder / "config.yaml"
        config.write_text(json.dumps({"model": {"path": self.model, "dtype": "float32"}, "device": "cpu",
                                      "calibration": {"micro_batch_tokens": 2048}, "evaluation": {"multiple_choice": self.lists}}))
        out, items = self.folder / "eval.json", self.folder / "items.jsonl"
        self.succeeds("eval", config, "--out", out, "--items", items, "--tensor", 2, ranks=2)
        found = [json.loads(line) for line in items.read_text().splitlines()]
        facts = json.loads(out.read_text())["multiple_choice"]
        for task, expected in self.expected.items():
            mine = [item for item in found if item["task"] == task]
            self.assertEqual(len(mine), len(expected))
            self.assertGreater(len(mine), ITEMS // 2, "most items were too long")
            right = {"acc": [], "acc_norm": []}
            for line, (sums, item) in zip(mine, expected, strict=True):
                sums = numpy.array(sums)
                # Two float32 forward passes that add up in other orders: 2 x terms x eps of sums of some dozen nats.
                self.assertLess(numpy.abs(numpy.array(line["log_likelihoods"]) - sums).max(), 2e-5 * numpy.abs(sums).max(), (task, line))
                lengths = numpy.array([characters for *_, characters in item])
                for metric, values, key in (("acc", sums, "choice"), ("acc_norm", sums / lengths, "choice_norm")):
                    self.assertEqual(line[key], int(numpy.argmax(values)), (task, metric, line))
                    right[metric].append(item[line[key]][2])
            for metric, values in right.items():
                self.assertAlmostEqual(facts[task][metric], numpy.mean(values), delta=1e-12)
                self.assertAlmostEqual(facts[task][f"{metric}_stderr"], numpy.std(values, ddof=1) / len(values) ** 0.5, delta=1e-12)
            print(f"{task}: {len(mine)} items, acc {facts[task]['acc']:.4f}, acc_norm {facts[task]['acc_norm']:.4f}")


if __name__ == "__main__":
    main()
