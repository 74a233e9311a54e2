"""--join and --window of launch/tokenize.py; run as test_tokenize.py."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, Case, llama_like

WORDS = ["", " = A Title = \n", "", " The cat sat . \n", " And the dog too . \n"]


class Join(Case):
    def test_is_the_text_joined_by_python(self):
        path = self.write("wiki.jsonl", [{"text": text} for text in WORDS])
        data = self.make(path, "--join", r"\n\n", "--eos", "none", tokens=4)
        ids = self.tokenizer.encode("\n\n".join(WORDS), add_special_tokens=False).ids
        self.assertEqual(data["tokens"].ravel().tolist(), ids[: len(ids) // 4 * 4])
        self.assertEqual(data["attributes"]["join"], "\n\n")
        self.assertIn(f"{len(ids) % 4} tokens of rest dropped", self.printed)
        self.assertIn("5 documents", self.printed)

    def test_one_begin_and_one_end(self):
        self.use(llama_like())
        path = self.write("a.jsonl", [{"text": text} for text in ("ab", "ba", "bb")])
        data = self.make(path, "--join", " ", "--eos", "</s>", "--keep-rest", tokens=64)
        tokens = data["tokens"][0][: data["length"][0]].tolist()
        self.assertEqual((tokens.count(1), tokens.count(2)), (1, 1))
        self.assertEqual((tokens[0], tokens[-1]), (1, 2))
        ids = self.tokenizer.encode("ab ba bb", add_special_tokens=False).ids
        self.assertEqual(tokens[1:-1], ids)

    def test_text_files(self):
        paths = [self.write(f"{name}.txt", name) for name in ("first", "second")]
        data = self.make(*paths, "--join", "+", "--eos", "none", "--keep-rest", tokens=32)
        self.assertEqual(
            self.tokenizer.decode(list(data["tokens"][0][: data["length"][0]])), "first+second"
        )

    def test_needs_packing(self):
        path = self.write("a.jsonl", [{"text": "a"}])
        self.assert_stops(64, "--join needs packing", arguments=[path, "--join", "x", "--no-pack"])


class Window(Case):
    TEXTS = CORPUS * 3

    def windows(self, *arguments, tokens=8):
        path = self.write("a.jsonl", [{"text": text} for text in self.TEXTS])
        return self.make(path, "--window", "--eos", "none", "--force", *arguments, tokens=tokens)

    def test_pieces_of_single_documents(self):
        documents = [self.tokenizer.encode(text).ids for text in self.TEXTS]
        width = sorted(map(len, documents))[len(documents) // 2]  # some have no more
        data = self.windows("--seed", 3, tokens=width)
        long = [ids for ids in documents if len(ids) > width]
        self.assertTrue(0 < len(long) < len(documents))
        self.assertEqual(len(data["tokens"]), len(long))
        self.assertIn(
            f"{len(documents) - len(long)} too short for --window dropped", self.printed
        )
        for row in data["tokens"].tolist():
            self.assertTrue(
                any(
                    row == ids[at : at + width]
                    for ids in long
                    for at in range(len(ids) - width)  # the last place is never drawn
                ),
                row,
            )
        self.assertEqual(data["attributes"]["window"], 1)

    def test_places_are_drawn(self):
        self.TEXTS = [CORPUS[0]] * 200
        data = self.windows("--seed", 0, tokens=4)
        ids = self.tokenizer.encode(CORPUS[0]).ids
        seen = {tuple(row) for row in data["tokens"].tolist()}
        self.assertEqual(seen, {tuple(ids[at : at + 4]) for at in range(len(ids) - 4)})
        again = self.windows("--seed", 0, tokens=4)
        self.assertTrue((data["tokens"] == again["tokens"]).all())
        other = self.windows("--seed", 1, tokens=4)
        self.assertFalse((data["tokens"] == other["tokens"]).all())

    def test_what_it_excludes(self):
        path = self.write("a.jsonl", [{"text": "a b c d e f"}])
        for words, arguments in (
            ("--window needs --seed", []),
            ("--pack and --window", ["--seed", 1, "--pack"]),
            ("--task and --window", ["--seed", 1, "--task", "multiple_choice"]),
            ("--join needs packing", ["--seed", 1, "--join", "x"]),
            (
                "--loss-on and --window",
                ["--seed", 1, "--template", "{text}", "--loss-on", "text"],
            ),
        ):
            with self.subTest(words=words):
                self.assert_stops(64, words, arguments=[path, "--window", *arguments])
        self.assert_stops(
            65,
            "1 too short for --window",
            arguments=[path, "--window", "--seed", 1],
            tokens=500,
        )


if __name__ == "__main__":
    unittest.main()
