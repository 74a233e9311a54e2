"""Multiple choice and exact match against lm-evaluation-harness: the same checkpoint, the same records, every option's log
likelihood and every item's choice, every answer and what is found in it. The harness's own figures are those of
harness_figures.json, measured anew where it is installed (launch/setup.sh --tests --harness).
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support")]

import numpy  # noqa: E402

from workbench import ROOT, Case, main  # noqa: E402

DATA = pathlib.Path(os.environ.get("ESPALIER_TEST_DATA", ""))
FOLDER = pathlib.Path(sys.prefix) / "lm-eval-0.4.13"
FIGURES = json.loads((HERE / "harness_figures.json").read_text(encoding="utf-8"))
MODEL = DATA / "models/tri-qwen2"
# Tokens of a row. The harness was told 1024: that many are read, and the last token of an option is only predicted.
WIDTH = 1025
# Two float32 forward passes that add up in other orders: 2 x terms x eps of sums of some dozen nats.
TOLERANCE = 2e-5


@unittest.skipUnless(DATA.name, "ESPALIER_TEST_DATA is not set: no items and no trained model")
class Harness(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
        if digest != FIGURES["model_sha256"]:
            raise unittest.SkipTest("ESPALIER_TEST_DATA holds another model than the stored figures are of")

    def tokenized(self, name, source, *words):
        out = self.folder / f"{name}.h5"
        done = subprocess.run([sys.executable, ROOT / "launch/tokenize.py", "--tokenizer", MODEL, "--sequence-tokens", str(WIDTH),
                               "--out", out, "--quiet", *map(str, words), source], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return str(out)

    def evaluated(self, ranks, evaluation, *words):
        config, out, items = (self.folder / name for name in ("config.yaml", "eval.json", "items.jsonl"))
        config.write_text(json.dumps({"model": {"path": str(MODEL), "dtype": "float32"}, "device": "cpu",
                                      "calibration": {"micro_batch_tokens": 4096}, "evaluation": evaluation}))
        self.succeeds("eval", config, "--out", out, "--items", items, *words, ranks=ranks)
        lines = [json.loads(line) for line in items.read_text().splitlines()]
        return json.loads(out.read_text()), lambda task: [line for line in lines if line["task"] == task]

    def first_lines(self, path, count):
        out = self.folder / pathlib.Path(path).name
        with open(DATA / "data" / path, encoding="utf-8") as lines:
            out.write_text("".join(line for _, line in zip(range(count), lines)), encoding="utf-8")
        return out

    def test_multiple_choice(self):
        tasks = FIGURES["multiple_choice"]
        lists = [{"name": name, "tokens": self.tokenized(
                     name, self.first_lines(f"mcq/{task['file']}.jsonl", len(task["items"])), "--task", "multiple_choice",
                     "--layout", task["layout"], "--overlong", "truncate")} for name, task in tasks.items()]
        result, found = self.evaluated(2, {"multiple_choice": lists}, "--tensor", 2)
        for name, task in tasks.items():
            self.assertEqual(len(found(name)), len(task["items"]))
            for line, item in zip(found(name), task["items"], strict=True):
                theirs = numpy.array(item["log_likelihoods"])
                self.assertLess(numpy.abs(line["log_likelihoods"] - theirs).max(), TOLERANCE * numpy.abs(theirs).max(), (name, line))
                self.assertEqual(line["right"], item["acc"] == 1, (name, line))
                if "acc_norm" in item:
                    self.assertEqual(line["right_norm"], item["acc_norm"] == 1, (name, line))
            facts = result["multiple_choice"][name]
            for metric in ("acc", "acc_norm"):
                if metric in task:
                    self.assertAlmostEqual(facts[metric], task[metric], delta=1e-12)

    def test_exact_match(self):
        task = FIGURES["gsm8k"]
        questions = self.folder / "questions.jsonl"
        questions.write_text("".join(json.dumps({"question": item["question"], "answer": item["answer"]}) + "\n" for item in task["items"]))
        examples = self.first_lines("math/gsm8k_train.jsonl", task["train"])
        tokens = self.tokenized("gsm8k", questions, "--task", "exact_match", "--shots", task["shots"], "--shots-from", examples)
        lists = [{"name": "gsm8k", "tokens": tokens, "max_new_tokens": task["new_tokens"]}]
        result, found = self.evaluated(2, {"exact_match": lists})
        self.assertEqual(len(found("gsm8k")), len(task["items"]))
        clear = 0
        for line, item in zip(found("gsm8k"), task["items"], strict=True):
            if not item["clear"]:
                continue
            clear += 1
            self.assertEqual(line["text"], item["text"])
            for name in ("strict", "flexible"):
                self.assertEqual(line[name], item[f"{name}_right"] == 1, (name, line))
        self.assertGreater(clear, len(task["items"]) // 2)
        rights = {name: {item[f"{name}_right"] for item in task["items"] if item["clear"]} for name in ("strict", "flexible")}
        self.assertEqual(rights["flexible"], {0, 1}, "right and wrong answers must both occur")
        facts = result["exact_match"]["gsm8k"]
        for name in ("strict", "flexible"):
            self.assertAlmostEqual(facts[name], numpy.mean([line[name] for line in found("gsm8k")]), delta=1e-12)

    @unittest.skipUnless(importlib.util.find_spec("lm_eval") or FOLDER.is_dir(), "lm-evaluation-harness is not installed (launch/setup.sh --tests --harness)")
    def test_stored_figures_are_the_harness_s(self):
        done = subprocess.run([sys.executable, HERE / "harness_figures.py", FOLDER, DATA], capture_output=True, text=True,
                              env={**os.environ, "HF_HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        fresh = json.loads(done.stdout)
        self.assertEqual(fresh["multiple_choice"].keys(), FIGURES["multiple_choice"].keys())
        for name, task in fresh["multiple_choice"].items():
            stored = FIGURES["multiple_choice"][name]
            for one, other in zip(task.pop("items"), stored["items"], strict=True):
                numpy.testing.assert_allclose(one.pop("log_likelihoods"), other["log_likelihoods"], rtol=TOLERANCE)
                self.assertEqual(one, {key: value for key, value in other.items() if key != "log_likelihoods"})
            self.assertEqual(task, {key: value for key, value in stored.items() if key != "items"})
        pairs = list(zip(fresh["gsm8k"]["items"], FIGURES["gsm8k"]["items"], strict=True))
        self.assertEqual([one for one, other in pairs if other["clear"]], [other for _, other in pairs if other["clear"]])


if __name__ == "__main__":
    main()
