"""Questions for exact match in launch/tokenize.py, and the bytes of tokens; run as test_tokenize.py."""

import json
import os
import pathlib
import random
import subprocess
import sys
import unittest

from tokenizers import decoders

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import END, ROOT, Case, byte_bpe, llama_like, tokenize

from espalier_tokens import pieces as pieces_of_tokens  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
LM_EVAL = ROOT / ".venv" / "lm-eval-0.4.13"
DATA = os.environ.get("ESPALIER_TEST_DATA")
TRAIN = [
    {"question": f"what is {i} + 1?", "answer": f"it is {i + 1}\n#### {i + 1}"} for i in range(9)
]
TEST = [{"question": f"what is {i} + 5?", "answer": f"#### {i + 5}"} for i in range(20, 32)]


class Pieces(Case):
    def pieces(self, path, vocab=None):
        coder = tokenize.Coder(str(path), "auto", "auto", False, vocab)
        joined, ends = pieces_of_tokens.pieces(coder)
        self.assertEqual(len(ends), coder.vocab_size)
        self.assertEqual(ends[-1], len(joined))
        return coder, [joined[begin:end] for begin, end in zip([0, *ends], ends)]

    def check(self, coder, pieces, rounds=60, strips=False):
        """Against the library's own decoding of numbers drawn by chance, special ones among them."""
        draw = random.Random(7)
        known = [i for i in range(len(pieces)) if coder.plain.id_to_token(i) is not None]
        special = sorted(coder.special)
        single = [i for i in known if pieces_of_tokens.BYTE.match(coder.plain.id_to_token(i) or "")]
        whole = sorted(set(known) - set(single) if strips else known)
        for _ in range(rounds):
            ids = draw.choices(whole, k=40) + draw.choices(special, k=3)
            draw.shuffle(ids)
            ours = b"".join(pieces[i] for i in ids)
            text = coder.plain.decode(ids, skip_special_tokens=True)
            if strips:  # the leading-space rule: decoding a whole text takes one from its begin
                self.assertTrue(ours.decode() in (text, " " + text), (ids, text))
            else:
                self.assertEqual(ours.decode(errors="replace"), text, ids)

    def test_byte_level(self):
        paths = [ROOT / "tests" / "models" / "tri-domain-qwen2"]
        if DATA:
            paths += [
                pathlib.Path(DATA, name)
                for name in ("tokenizers/qwen2.5", "tokenizers/minimind6400", "models/tri-qwen2")
            ]
        for path in paths:
            with self.subTest(path=path.name):
                self.check(*self.pieces(path))

    def test_byte_fallback(self):
        if not DATA:
            self.skipTest("ESPALIER_TEST_DATA is not set")
        for name in (
            "tokenizers/mistral/tokenizer_v3.json",
            "models/stories260K",
            "models/babyllama105",
        ):
            coder, pieces = self.pieces(pathlib.Path(DATA, name))
            with self.subTest(name=name):
                self.check(coder, pieces, strips=True)
                text = (
                    "a b  c\n\u4e2d\U0001f642\u00e9 caf\u00e9 \x01 z"
                    if "baby" not in name
                    else "the cat"
                )
                ids = coder.plain.encode(text, add_special_tokens=False).ids
                self.assertEqual(b"".join(pieces[i] for i in ids).decode(), " " + text)
                self.assertEqual(coder.plain.decode(ids), text)

    def test_added_tokens_and_metaspace(self):
        tokenizer = byte_bpe()
        tokenizer.add_tokens(["<think>", "two words", "\u4e2d\u6587"])
        tokenizer.add_special_tokens(["<|im_end|>"])
        self.use(tokenizer)
        coder, pieces = self.pieces(self.dir / "model", vocab=tokenizer.get_vocab_size() + 5)
        self.assertEqual(pieces[tokenizer.token_to_id("<|im_end|>")], b"")
        self.assertEqual(pieces[tokenizer.token_to_id("two words")], b"two words")
        self.assertEqual(pieces[-5:], [b""] * 5)
        self.check(coder, pieces)
        tokenizer = llama_like()
        tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
        self.use(tokenizer)
        _, pieces = self.pieces(self.dir / "model")
        ids = [tokenizer.token_to_id(t) for t in ("\u2581a", "\u2581b", "c")]
        self.assertEqual([pieces[i] for i in ids], [b" a", b" b", b"c"])
        self.assertEqual(tokenizer.decode(ids), "a bc")

    def test_alphabet(self):
        """The table of bytes is the library's."""
        for character, byte in pieces_of_tokens.byte_alphabet().items():
            if byte < 128:
                self.assertEqual(byte_bpe().decoder.decode([character]), chr(byte))
        self.assertEqual(sorted(pieces_of_tokens.byte_alphabet().values()), list(range(256)))


class Prompts(Case):
    def setUp(self):
        super().setUp()
        self.train = self.write("train.jsonl", TRAIN)
        self.test = self.write("test.jsonl", TEST)

    def ask(self, *arguments, tokens=512):
        return self.make("--task", "exact_match", "--force", *arguments, tokens=tokens)

    def prompts(self, data):
        pieces = [
            bytes(data["piece_bytes"][begin:end])
            for begin, end in zip([0, *data["piece_ends"]], data["piece_ends"])
        ]
        return [
            b"".join(pieces[i] for i in row[:n]).decode()
            for row, n in zip(data["tokens"], data["length"])
        ]

    def test_without_examples(self):
        data = self.ask(self.test, "--shots", 0)
        self.assertEqual(self.prompts(data), [f"Question: {r['question']}\nAnswer:" for r in TEST])
        self.assertEqual([a.decode() for a in data["answer"]], [r["answer"] for r in TEST])
        attributes = data["attributes"]
        self.assertEqual((attributes["task"], attributes["shots"]), ("exact_match", 0))
        self.assertEqual(json.loads(attributes["stop"]), ["Question:", "</s>", "<|im_end|>"])
        self.assertEqual(
            (attributes["eos_ids"].dtype, attributes["eos_ids"].tolist()), ("int32", [])
        )
        self.assertEqual({str(self.types[n]) for n in ("tokens", "length")}, {"int32"})
        self.assertEqual(
            (str(self.types["piece_bytes"]), str(self.types["piece_ends"])), ("uint8", "int64")
        )
        self.assertNotIn("loss_mask", data)
        self.assertEqual(len(data["piece_ends"]), attributes["vocab_size"])

    def test_ends_of_a_text(self):
        self.use(byte_bpe(), {"eos_token_id": [3, 5, 100000]}, {"eos_token": {"content": END}})
        (self.dir / "model" / "generation_config.json").write_text('{"eos_token_id": 4}')
        data = self.ask(self.test, "--shots", 0)
        end = self.tokenizer.token_to_id(END)
        self.assertEqual(data["attributes"]["eos_ids"].tolist(), sorted({3, 4, 5, end}))

    def test_examples(self):
        data = self.ask(self.test, "--shots-from", self.train)
        first = self.prompts(data)
        shots = {f"Question: {r['question']}\nAnswer: {r['answer']}" for r in TRAIN}
        for prompt, record in zip(first, TEST, strict=True):
            *before, last = prompt.split("\n\n")
            self.assertEqual(last, f"Question: {record['question']}\nAnswer:")
            self.assertEqual((len(before), len(set(before))), (5, 5))
            self.assertLessEqual(set(before), shots)
        self.assertNotEqual(first[0].split("\n\n")[:5], first[1].split("\n\n")[:5])
        sources = json.loads(data["attributes"]["shots_sources"])
        self.assertEqual([s["path"] for s in sources], [self.train])
        self.assertEqual(data["attributes"]["shots_seed"], 1234)
        self.assertEqual(self.prompts(self.ask(self.test, "--shots-from", self.train)), first)
        other = self.ask(self.test, "--shots-from", self.train, "--shots-seed", 5)
        self.assertNotEqual(self.prompts(other), first)
        two = self.prompts(self.ask(self.test, "--shots-from", self.train, "--shots", 2))
        self.assertEqual({p.count("\n\n") for p in two}, {2})

    def test_a_question_is_no_example_of_itself(self):
        data = self.ask(self.train, "--shots-from", self.train, "--shots", 8)
        for prompt, record in zip(self.prompts(data), TRAIN, strict=True):
            self.assertEqual(prompt.count(record["question"]), 1)
            self.assertEqual(prompt.count("Question:"), 9)

    def test_overlong_and_empty(self):
        path = self.write(
            "a.jsonl",
            [
                *TEST[:2],
                {"question": "long " * 60, "answer": "1"},
                {"question": "q", "answer": " "},
            ],
        )
        data = self.ask(path, "--shots", 0, tokens=40)
        self.assertEqual(len(data["tokens"]), 2)
        self.assertIn("1 overlong dropped, 1 empty skipped", self.printed)
        data = self.ask(path, "--shots", 0, "--overlong", "truncate", tokens=40)
        self.assertEqual(data["length"][2], 40)
        self.assertTrue(self.prompts(data)[2].endswith("\nAnswer:"))
        self.assertIn("1 truncated", self.printed)

    def test_begin_token(self):
        self.use(llama_like(), settings={"eos_token": "</s>", "add_eos_token": True})
        tokenizer = self.tokenizer
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        self.use(tokenizer)
        data = self.ask(self.test, "--shots", 0)
        self.assertTrue((data["tokens"][:, 0] == 1).all())
        self.assertEqual(data["attributes"]["eos_ids"].tolist(), [2])
        row = data["tokens"][0][: data["length"][0]].tolist()
        self.assertEqual(row.count(2), 0)

    @unittest.skipUnless(LM_EVAL.is_dir(), f"no lm-eval 0.4.13 in {LM_EVAL.name}")
    def test_prompts_against_the_harness_itself(self):
        records = self.write("records.json", json.dumps({"gsm8k": {"train": TRAIN, "test": TEST}}))
        done = subprocess.run(
            [sys.executable, HERE / "harness_requests.py", LM_EVAL, records],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HOME": str(self.dir), "PYTHONPATH": ""},
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        data = self.ask(self.test, "--shots-from", self.train)
        theirs = json.loads(done.stdout)["gsm8k"]
        self.assertEqual(self.prompts(data), [ask["prompt"] for ask in theirs])
        self.assertEqual([a.decode() for a in data["answer"]], [ask["answer"] for ask in theirs])
        self.assertEqual(json.loads(data["attributes"]["stop"]), theirs[0]["until"])

    def test_refused(self):
        task = ["--task", "exact_match"]
        for code, arguments, words in (
            (64, [self.test, *task], ("--shots 5 needs --shots-from",)),
            (64, [self.test, *task, "--shots", 0, "--shots-from", self.train], ("has no use",)),
            (64, [self.test, "--shots", 2], ("--shots needs --task exact_match",)),
            (64, [self.test, "--shots-from", self.train], ("--shots-from needs --task",)),
            (64, [self.test, *task, "--shots", 0, "--template", "{question}"], ("exclude",)),
            (64, [self.write("a.txt", "x"), *task, "--shots", 0], ("cannot be filled",)),
            (66, [self.test, *task, "--shots-from", self.dir / "none.jsonl"], ("none.jsonl",)),
            (
                65,
                [self.test, *task, "--shots-from", self.train, "--shots", 10],
                ("too few examples", "9 records"),
            ),
            (
                65,
                [self.train, *task, "--shots-from", self.train, "--shots", 9],
                ("too few examples",),
            ),
            (
                65,
                [
                    self.test,
                    *task,
                    "--shots-from",
                    self.write("bad.jsonl", '{"question": "q"}\n' * 9),
                ],
                ("bad.jsonl", "no field 'answer'"),
            ),
            (
                65,
                [self.write("b.jsonl", [{"question": "q", "answer": None}]), *task, "--shots", 0],
                ("b.jsonl:1", "null"),
            ),
            (
                65,
                [
                    self.write("c.jsonl", [TRAIN[0]] * 9),
                    *task,
                    "--shots-from",
                    self.dir / "c.jsonl",
                ],
                ("nearly all",),
            ),
        ):
            with self.subTest(arguments=arguments):
                self.assert_stops(code, *words, arguments=arguments, tokens=512)
        tokenizer = byte_bpe()
        tokenizer.decoder = decoders.WordPiece()
        self.use(tokenizer)
        self.assert_stops(
            65, "decoder", "WordPiece", arguments=[self.test, *task, "--shots", 0], tokens=512
        )


if __name__ == "__main__":
    unittest.main()
