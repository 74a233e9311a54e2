"""The recipes of launch/recipes, and GISP's set as its released code makes it; run as test_tokenize.py."""

import json
import pathlib
import subprocess
import sys
import unittest

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, ROOT, Case, byte_bpe, llama_like

HARNESS = json.loads(
    (pathlib.Path(__file__).resolve().parent / "harness_requests.json").read_text()
)
SETS = ("boolq", "arc_easy", "arc_challenge", "hellaswag", "openbookqa", "winogrande", "piqa")


class Recipes(Case):
    def setUp(self):
        super().setUp()
        self.choices = []
        for name in SETS:
            path = self.write(f"{name}.jsonl", HARNESS["records"][name.partition("_")[0]] * 30)
            self.choices.append(f"{name}={path}")
        self.text = self.write("c4.jsonl", [{"text": text} for text in CORPUS * 20])

    def start(self, recipe, out, *arguments):
        command = [
            ROOT / "launch" / "recipes" / f"{recipe}.sh",
            self.dir / "model",
            out,
            *arguments,
        ]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=self.dir)

    def cook(self, *arguments):
        done = self.start(*arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_gisp_c4(self):
        self.cook("gisp_c4", self.out, f"c4={self.text}", "--", "--sequence-tokens", "16")
        with h5py.File(self.out) as file:
            self.assertEqual(file["tokens"].shape[1], 16)
            self.assertEqual((file.attrs["seed"], file.attrs["window"]), (0, 1))

    def test_gisp_c4_has_2000_rows_of_256_tokens(self):
        text = self.write("long.jsonl", [{"text": text * 30} for text in CORPUS * 150])
        self.cook("gisp_c4", self.out, f"c4={text}")
        with h5py.File(self.out) as file:
            self.assertEqual(file["tokens"].shape, (2000, 256))

    def test_gisp_gsm8k(self):
        path = self.write(
            "gsm8k.jsonl", [{"question": "2 + 3?", "answer": f"it is {n}\n#### {n}"} for n in range(9)]
        )
        done = self.start("gisp_gsm8k", self.out, f"gsm8k={path}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("ran out at", done.stderr)
        with h5py.File(self.out) as file:
            self.assertEqual(file["tokens"].shape, (9, 512))
            self.assertEqual(file.attrs["token_limit"], 512000)
            counted = [
                self.tokenizer.decode(list(ids[mask == 1]))
                for ids, mask in zip(file["tokens"], file["loss_mask"])
            ]
            self.assertEqual(set(counted), {f"it is {n}\n#### {n}" for n in range(9)})
            whole = self.tokenizer.decode(list(file["tokens"][0][: file["length"][0]]))
            self.assertTrue(whole.startswith("Question: 2 + 3?\nAnswer: it is "), whole)

    def test_gisp_medqa(self):
        path = self.write("medqa.jsonl", HARNESS["records"]["medqa"] * 2)
        done = self.start("gisp_medqa", self.out, f"medqa={path}", "--", "--sequence-tokens", "256")
        self.assertEqual(done.returncode, 0, done.stderr)
        with h5py.File(self.out) as file:
            self.assertEqual((file.attrs["layout"], file.attrs["token_limit"]), ("medqa", 512000))
            self.assertEqual(sum(file["correct"]), 4)
            self.assertEqual((file["loss_mask"][()].sum(axis=1) > 0).sum(), 16)

    def test_evaluation(self):
        wiki = [{"text": text} for text in ("", " = Title = \n", "", *CORPUS * 20)]
        gsm8k = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(12)]
        self.cook(
            "evaluation",
            "set",
            *self.choices,
            f"wikitext2={self.write('wiki.jsonl', wiki)}",
            f"gsm8k={self.write('test.jsonl', gsm8k[:4])}",
            f"gsm8k_train={self.write('train.jsonl', gsm8k)}",
            f"medqa={self.write('medqa.jsonl', HARNESS['records']['medqa'] * 30)}",
            "--",
            "--quiet",
        )
        files = {path.stem for path in (self.dir / "set").iterdir()}
        self.assertEqual(files, {"wikitext2", "gsm8k", "medqa", *SETS})
        with h5py.File(self.dir / "set" / "wikitext2.h5") as file:
            ids = self.tokenizer.encode("\n\n".join(line["text"] for line in wiki)).ids
            self.assertEqual(file["tokens"].shape, (len(ids) // 128, 128))
            self.assertEqual(
                file["tokens"][()].ravel().tolist(), ids[: file["tokens"].size]
            )
        with h5py.File(self.dir / "set" / "gsm8k.h5") as file:
            self.assertEqual((file.attrs["shots"], len(file["answer"])), (5, 4))
        for name in (*SETS, "medqa"):
            with h5py.File(self.dir / "set" / f"{name}.h5") as file:
                self.assertEqual(file.attrs["layout"], name.partition("_")[0])
                records = HARNESS["records"][name.partition("_")[0]]
                self.assertEqual(len(np.unique(file["item"])), 30 * len(records))

    def test_evaluation_of_what_is_named(self):
        self.cook("evaluation", "set", self.choices[0], "--", "--quiet")
        self.assertEqual([path.name for path in (self.dir / "set").iterdir()], ["boolq.h5"])

    def test_gisp_cmqa(self):
        self.cook("gisp_cmqa", "out.h5", *self.choices, "--", "--tokens", "7000")
        with h5py.File(self.out) as file:
            mix = json.loads(file.attrs["mix"])
            self.assertEqual([part["tokens"] for part in mix], [1000] * 7)
            self.assertEqual(
                [part["layout"] for part in mix],
                ["boolq", "arc", "arc", "hellaswag", "openbookqa", "winogrande", "piqa"],
            )
            begins = np.flatnonzero(np.diff(file["item"][:], prepend=-1))
            self.assertTrue((np.add.reduceat(file["correct"][:], begins) == 1).all())
            self.assertTrue(6000 < file["length"][:].sum() <= 7000)

    def test_hybrid(self):
        math = self.write("math.jsonl", [{"question": "2 + 3?", "answer": "5"}] * 600)
        self.cook(
            "hybrid",
            "set",
            f"web={self.text}",
            f"code={ROOT / 'launch' / 'python'}",
            f"math={math}",
            *self.choices,
            "--",
            "--tokens",
            "4200",
            "--quiet",
            "--sequence-tokens",
            "128",
        )
        tasks = {}
        for path in (self.dir / "set").iterdir():
            with h5py.File(path) as file:
                tasks[path.name] = (
                    file.attrs.get("task", ""),
                    file.attrs["packed"],
                    "loss_mask" in file,
                )
        self.assertEqual(
            tasks,
            {
                "web.h5": ("", 1, False),
                "code.h5": ("", 1, False),
                "math.h5": ("", 0, True),
                "commonsense.h5": ("multiple_choice", 0, True),
            },
        )

    def test_wrong_arguments(self):
        for recipe, arguments, word in (
            ("gisp_c4", [], "c4=PATH is missing"),
            ("gisp_c4", ["web=x"], "'web=x' is no input"),
            ("gisp_c4", [self.text], "is no input of this recipe"),
            ("gisp_cmqa", self.choices[:-1], "piqa=PATH is missing"),
            ("hybrid", self.choices, "web=PATH is missing"),
            ("gisp_gsm8k", ["--", "--seed", "1"], "gsm8k=PATH is missing"),
            ("evaluation", [], "wikitext2=PATH is missing"),
            ("evaluation", [f"gsm8k={self.text}"], "gsm8k_train=PATH is missing"),
        ):
            with self.subTest(recipe=recipe, arguments=arguments):
                done = self.start(recipe, self.out, *arguments)
                self.assertEqual((done.returncode, done.stdout), (64, ""))
                self.assertIn(word, done.stderr)
        done = self.start("gisp_c4", self.out, f"c4={self.dir / 'none'}")
        self.assertEqual(done.returncode, 66)
        done = subprocess.run(
            [ROOT / "launch" / "recipes" / "hybrid.sh", "--help"], capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0)
        self.assertTrue(done.stdout.startswith("launch/recipes/hybrid.sh MODEL DIRECTORY"))
        self.assertNotIn("set -e", done.stdout)


class AsReleased(Case):
    RECORDS = [*HARNESS["records"]["winogrande"], HARNESS["records"]["piqa"][0]]

    def rows(self, *arguments):
        path = self.write("a.jsonl", self.RECORDS)
        data = self.make(path, "--task", "multiple_choice", "--force", *arguments, tokens=128)
        self.data = data
        return [
            ([self.tokenizer.id_to_token(i) for i in ids[:n]], mask[:n].tolist())
            for ids, n, mask in zip(data["tokens"], data["length"], data["loss_mask"])
        ]

    def test_byte_level(self):
        self.use(byte_bpe())
        self.rows()
        self.assertEqual(self.data["correct"].tolist(), [1, 0, 0, 1, 1, 0])
        self.assertNotIn("gisp_as_released", self.data["attributes"])
        rows = self.rows("--gisp-as-released")
        # The first item's answer is 1: it is the one that is read wrong.
        self.assertEqual(self.data["correct"].tolist(), [0, 1, 0, 1, 1, 0])
        self.assertEqual(self.data["attributes"]["gisp_as_released"], 1)
        context, answer = "Question: open a can\nAnswer:", "Use a can opener."
        pair = [self.tokenizer.encode(text).tokens for text in (context, answer)]
        self.assertEqual(rows[4], (sum(pair, []), [0] * len(pair[0]) + [1] * len(pair[1])))

    def test_sentence_piece(self):
        """Such a tokenizer puts a space before every text, so the fault does not show."""
        self.use(llama_like())
        tokens, mask = self.rows("--gisp-as-released")[4]
        self.assertEqual(tokens[0], "<s>")
        self.assertEqual(tokens.count("<s>"), 1)
        self.assertEqual(tokens[mask.index(1)], "\u2581")


if __name__ == "__main__":
    unittest.main()
