"""Inputs in proportions, budgets of tokens in launch/tokenize.py; run as test_tokenize.py."""

import json
import pathlib
import sys
import unittest

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, Case

from espalier_tokens import mix  # noqa: E402


class Mix(Case):
    """Each input has one letter, so that every row tells where it came from."""

    def setUp(self):
        super().setUp()
        self.paths = {c: self.write(f"{c}.jsonl", [{"text": f"{c} " * 9 + c}] * 200) for c in "xyz"}

    def mixed(self, *arguments, tokens=8):
        data = self.make(*arguments, "--eos", "none", "--force", tokens=tokens)
        letters = []
        for row in data["tokens"]:
            (letter,) = set(self.tokenizer.decode(row.tolist())) - {" "}
            letters.append(letter)
        return data, "".join(letters)

    def test_shares(self):
        for weights, budget, counts in (
            ((1, 1, 2), 320, (10, 10, 20)),
            ((1, 1, 1), 240, (10, 10, 10)),
            (("0.5", "0.25", "0.25"), 325, (20, 10, 10)),  # 162.5 and 81.25 tokens of rows of 8
            (("1/2", "1/3", "1/6"), 480, (30, 20, 10)),
            ((1, 1, 1), 24, (1, 1, 1)),
        ):
            with self.subTest(weights=weights, budget=budget):
                mixes = [f"--mix={w}:{self.paths[c]}" for w, c in zip(weights, "xyz")]
                data, letters = self.mixed(*mixes, "--tokens", budget)
                self.assertEqual(tuple(letters.count(c) for c in "xyz"), counts)
                self.assertLessEqual(data["tokens"].size, budget)
                self.assertIn("stopped at --tokens", self.printed)
                for c, count in zip("xyz", counts):
                    self.assertRegex(
                        self.printed, rf"\n  {8 * count} of \d+ tokens, {count} rows: .*{c}\.jsonl"
                    )
                # Every begin of the file has about the proportions of the whole.
                for end in range(1, len(letters)):
                    for c, count in zip("xyz", counts):
                        share = end * count / len(letters)
                        self.assertLess(abs(letters[:end].count(c) - share), 2, letters)

    def test_provenance_and_same_bytes(self):
        mixes = [f"--mix={w}:{self.paths[c]}" for w, c in ((2, "x"), ("1.5", "y"))]
        data, _ = self.mixed(*mixes, "--tokens", 160, "--seed", 4)
        self.assertEqual(
            json.loads(data["attributes"]["mix"]),
            [
                {"weight": "2", "path": self.paths["x"], "layout": "auto", "tokens": 91},
                {"weight": "3/2", "path": self.paths["y"], "layout": "auto", "tokens": 68},
            ],
        )
        self.assertEqual(data["attributes"]["token_limit"], 160)
        self.assertEqual(
            [s["path"] for s in json.loads(data["attributes"]["sources"])],
            [self.paths["x"], self.paths["y"]],
        )
        first = self.out.read_bytes()
        self.mixed(*mixes, "--tokens", 160, "--seed", 4)
        self.assertEqual(self.out.read_bytes(), first)

    def test_what_runs_out_is_said(self):
        short = self.write("short.jsonl", [{"text": "y " * 30}])
        code, printed, errors = self.run_main(
            f"--mix=1:{self.paths['x']}", f"--mix=1:{short}", "--tokens", 320, "--keep-rest"
        )
        self.assertEqual(code, 0)
        self.assertRegex(errors, r"^tokenize: note: .*short\.jsonl ran out at \d+ of 160 tokens\n$")
        self.assertIn("160 of 160 tokens, 20 rows", printed)
        code, _, errors = self.run_main(self.paths["x"], "--tokens", 10**6, "--force", "--quiet")
        self.assertEqual(code, 0)
        self.assertIn("x.jsonl ran out at", errors)
        code, _, errors = self.run_main(
            f"--mix=1000:{self.paths['x']}", f"--mix=1:{short}", "--tokens", 320, "--force"
        )
        self.assertIn("short.jsonl has no row: the first has more than its 1 token", errors)

    def test_budget_of_one_input(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        whole = self.make(path)["tokens"]
        for budget, rows in ((8, 1), (15, 1), (16, 2), (33, 4)):
            data = self.make(path, "--tokens", budget, "--force")
            np.testing.assert_array_equal(data["tokens"], whole[:rows])
            self.assertIn("stopped at --tokens", self.printed)
        self.assert_stops(
            65,
            "--tokens 7 is less than",
            arguments=[path, "--tokens", 7, "--force"],
            out=self.dir / "other.h5",
        )

    def test_items_are_never_split(self):
        item = {"question": "two", "choices": ["four", "make", "the cat"], "answer": 0}
        other = {"question_stem": "the", "choices": ["cat", "dog"], "answer": 1}
        plain = {"question": "the", "choices": ["cat", "dog"], "answer": 1}
        paths = [
            self.write("item.jsonl", [item] * 90),
            self.write("other.jsonl", [other] * 90),
            self.write("plain.jsonl", [plain] * 90),
        ]
        mixes = [f"--mix=1:{paths[0]}", f"--mix=1:{paths[1]}", f"--mix=1,openbookqa:{paths[2]}"]
        for budget in (600, 601, 650, 700, 777):
            data = self.make(
                *mixes, "--task", "multiple_choice", "--tokens", budget, "--force", tokens=64
            )
            begins = np.flatnonzero(np.diff(data["item"], prepend=-1))
            sizes = np.diff([*begins, len(data["item"])])
            self.assertTrue(np.isin(sizes, (2, 3)).all())
            self.assertTrue((np.add.reduceat(data["correct"], begins) == 1).all())
            self.assertEqual(data["item"].tolist(), sorted(data["item"]))
            tokens = np.add.reduceat(data["length"], begins)
            three, two = tokens[sizes == 3].sum(), tokens[sizes == 2].sum()
            self.assertLessEqual(max(three, two / 2), budget // 3)
            self.assertGreater(three, budget // 3 - tokens.max())
        texts = {
            self.tokenizer.decode(r[:n].tolist()) for r, n in zip(data["tokens"], data["length"])
        }
        self.assertIn("the dog", texts)
        self.assertNotIn("Question: the\nAnswer: dog", texts)
        self.assertEqual(
            [m["layout"] for m in json.loads(data["attributes"]["mix"])],
            ["auto", "auto", "openbookqa"],
        )

    def test_refused(self):
        x = self.paths["x"]
        for code, arguments, words in (
            (64, [f"--mix=1:{x}"], ("--mix needs --tokens",)),
            (64, [f"--mix=1:{x}", x, "--tokens", 80], ("--mix and INPUT exclude",)),
            (64, ["--tokens", 80], ("no INPUT",)),
            (64, [x, "--tokens", 1], ("at least 2",)),
            (64, [f"--mix=0:{x}", "--tokens", 80], ("--mix 0:", "above 0")),
            (64, [f"--mix=-1:{x}", "--tokens", 80], ("above 0",)),
            (64, [f"--mix=1/0:{x}", "--tokens", 80], ("above 0",)),
            (64, [f"--mix=nan:{x}", "--tokens", 80], ("above 0",)),
            (64, ["--mix=1:", "--tokens", 80], ("a path",)),
            (64, [f"--mix={x}", "--tokens", 80], ("a colon",)),
            (64, [f"--mix=1,mmlu:{x}", "--tokens", 80], ("layouts: auto, arc",)),
            (64, [f"--mix=1,arc:{x}", "--tokens", 80], ("needs --task multiple_choice",)),
            (
                65,
                [f"--mix=1:{x}", f"--mix=1:{x}", "--tokens", 80],
                ("nothing to read", "another --mix"),
            ),
            (
                65,
                [f"--mix=1:{x}", f"--mix=1:{self.write('e.jsonl', '')}", "--tokens", 80],
                ("nothing to read",),
            ),
            (
                66,
                [f"--mix=1:{x}", f"--mix=1:{self.dir / 'none'}", "--tokens", 80],
                ("no such file",),
            ),
            (
                65,
                [f"--mix=1:{x}", f"--mix=1:{self.write('b.jsonl', '{')}", "--tokens", 80],
                ("b.jsonl:1",),
            ),
        ):
            with self.subTest(arguments=arguments):
                self.assert_stops(code, *words, arguments=arguments)

    def test_next_is_who_has_least(self):
        def stream(sizes, quota):
            units = iter([[{"length": n}] for n in sizes])
            return mix.Stream(str(quota), None, units, quota)

        order = []
        streams = [stream([3] * 9, 12), stream([5, 5, 5], 30), stream([2, 9], 8)]
        for taken, unit, size in mix.merged(streams):
            taken.take(unit, size)
            order.append((taken.quota, size))
        self.assertEqual(
            order, [(12, 3), (30, 5), (8, 2), (30, 5), (12, 3), (30, 5), (12, 3), (12, 3)]
        )
        self.assertEqual([s.ran_out for s in streams], [False, True, False])


if __name__ == "__main__":
    unittest.main()
