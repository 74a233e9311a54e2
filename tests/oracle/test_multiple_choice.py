"""Multiple choice at several layouts and micro-batches against transformers in float64, row by row, and what is made of the
log likelihoods against numpy's argmax."""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import h5py  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402

import reference  # noqa: E402
import token_files  # noqa: E402
from workbench import Case, main  # noqa: E402

LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))


def log_likelihoods(model, path):
    """[rows]: sum of log p of the tokens that the mask marks, one row at a time."""
    tokens, length, mask = reference.read_tokens(path)
    with torch.no_grad():
        return numpy.array([
            -reference.sequence_loss(model, tokens[i, : length[i]], mask[i, : length[i]])[1].sum().item()
            for i in range(len(tokens))
        ])


def choices(path, sums):
    """[(item's row range, choice, choice by length or None, right options)] by numpy."""
    with h5py.File(path) as file:
        item, correct = file["item"][:], file["correct"][:]
        normalizer = file["normalizer"][:] if "normalizer" in file else None
    result = []
    for number in dict.fromkeys(item.tolist()):
        rows = numpy.flatnonzero(item == number)
        by_length = None if normalizer is None else int(numpy.argmax(sums[rows] / normalizer[rows]))
        result.append((rows, int(numpy.argmax(sums[rows])), by_length, numpy.flatnonzero(correct[rows])))
    return result


def share(right):
    """Mean and standard error as lm-evaluation-harness gives them."""
    right = numpy.array(right, dtype=float)
    return right.mean(), right.std(ddof=1) / len(right) ** 0.5


class MultipleChoice(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with reference.quiet():
            cls.reference = reference.load(cls.bench.model, torch.float64)
        cls.files = {"with": cls.bench.folder / "with.h5", "without": cls.bench.folder / "without.h5"}
        token_files.random_options(cls.files["with"], 11, 64, seed=5)
        token_files.random_options(cls.files["without"], 7, 64, seed=6, normalizers=False)
        lists = [{"name": name, "tokens": str(path)} for name, path in cls.files.items()]
        cls.config = cls.bench.config(evaluation={"multiple_choice": lists})

    def evaluated(self, name, ranks, *words):
        out, items = self.folder / f"{name}.json", self.folder / f"{name}.jsonl"
        self.succeeds("eval", self.config, "--out", out, "--items", items, *words, ranks=ranks)
        return json.loads(out.read_text()), [json.loads(line) for line in items.read_text().splitlines()]

    def test_every_row_choice_and_share(self):
        expected = {name: log_likelihoods(self.reference, path) for name, path in self.files.items()}
        for tensor, data in LAYOUTS:
            for micro_batch in (1, 40):
                name = f"{tensor}x{data}-{micro_batch}"
                with self.subTest(name):
                    result, items = self.evaluated(name, tensor * data, "--tensor", tensor, "--set",
                                                   f"calibration.micro_batch_tokens={micro_batch}")
                    for task, sums in expected.items():
                        self.is_expected(task, sums, result, [item for item in items if item["task"] == task])

    def is_expected(self, task, sums, result, items):
        chosen = choices(self.files[task], sums)
        self.assertEqual(len(items), len(chosen))
        for line, (rows, choice, by_length, right) in zip(items, chosen, strict=True):
            difference = numpy.abs(numpy.array(line["log_likelihoods"]) - sums[rows]).max()
            self.assertLess(difference, 1e-9 * numpy.abs(sums).max())
            self.assertEqual((line["choice"], line["right"]), (choice, choice in right))
            self.assertEqual(line.get("choice_norm"), by_length)
        facts = result["multiple_choice"][task]
        self.assertEqual(facts["items"], len(chosen))
        metrics = {"acc": [c in right for _, c, _, right in chosen]}
        if chosen[0][2] is not None:
            metrics["acc_norm"] = [c in right for _, _, c, right in chosen]
        self.assertEqual({"acc_norm" in facts}, {"acc_norm" in metrics})
        for metric, right in metrics.items():
            value, error = share(right)
            self.assertAlmostEqual(facts[metric], value, delta=1e-15)
            self.assertAlmostEqual(facts[f"{metric}_stderr"], error, delta=1e-15)
            (entry,) = [r for r in result["results"] if (r["task"], r["metric"]) == (task, metric)]
            self.assertEqual((entry["value"], entry["stderr"], entry["n"]), (facts[metric], facts[f"{metric}_stderr"], len(right)))


if __name__ == "__main__":
    main()
