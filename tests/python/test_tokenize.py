"""Rows that launch/tokenize.py writes. Run: python -m unittest discover -s tests/python"""

import hashlib
import json
import pathlib
import sys
import unittest
from unittest import mock

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, END, Case, byte_bpe, llama_like, tokenize


class Packing(Case):
    def expected_stream(self, texts):
        end = self.tokenizer.token_to_id(END)
        return [i for text in texts for i in [*self.tokenizer.encode(text).ids, end]]

    def test_no_token_is_lost(self):
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS])
        stream = self.expected_stream(CORPUS)
        for tokens in (2, 7, 8, 64):
            with self.subTest(tokens=tokens):
                data = self.make(path, "--keep-rest", "--force", tokens=tokens)
                rows = [list(row[:length]) for row, length in zip(data["tokens"], data["length"])]
                self.assertEqual(sum(rows, []), stream[: len(stream) - (len(stream) % tokens == 1)])
                data = self.make(path, "--force", tokens=tokens)
                whole = len(stream) // tokens
                self.assertEqual(data["tokens"].reshape(-1).tolist(), stream[: whole * tokens])
                self.assertNotIn("length", data)
                self.assertEqual(
                    f"{len(stream) - whole * tokens:,} tokens of rest dropped" in self.printed,
                    len(stream) % tokens > 0,
                )

    def test_contract(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        data = self.make(path)
        self.assertEqual(self.types, {"tokens": np.dtype("int32")})
        raw = pathlib.Path(path).read_bytes()
        attributes = data["attributes"]
        self.assertEqual(attributes["format"], "espalier-tokens")
        self.assertEqual(attributes["version"], 1)
        self.assertEqual(attributes["vocab_size"], self.tokenizer.get_vocab_size())
        self.assertEqual(attributes["source_sha256"], hashlib.sha256(raw).hexdigest())
        self.assertEqual(
            json.loads(attributes["sources"]),
            [{"path": path, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}],
        )
        self.assertEqual(
            attributes["tokenizer_sha256"],
            hashlib.sha256((self.dir / "model" / "tokenizer.json").read_bytes()).hexdigest(),
        )
        self.assertEqual((attributes["template"], attributes["seed"]), ("", -1))
        self.assertLess(data["tokens"].max(), attributes["vocab_size"])

    def test_same_input_same_bytes(self):
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS])
        self.make(path, "--seed", 5)
        first = self.out.read_bytes()
        self.make(path, "--seed", 5, "--force")
        self.assertEqual(self.out.read_bytes(), first)
        self.make(path, "--seed", 6, "--force")
        self.assertNotEqual(self.out.read_bytes(), first)

    def test_seed_permutes_documents(self):
        texts = [f"document {i} ends" for i in range(40)]
        path = self.write("a.jsonl", [{"text": t} for t in texts])
        data = self.make(path, "--no-pack", "--seed", 3, tokens=32)
        read = [
            self.tokenizer.decode(list(row[:n])) for row, n in zip(data["tokens"], data["length"])
        ]
        self.assertNotEqual(read, texts)
        self.assertEqual(sorted(read), sorted(texts))
        self.assertEqual(data["attributes"]["seed"], 3)

    def test_directory_is_walked_by_name(self):
        self.write("d/b.md", "second")
        self.write("d/a.txt", "first")
        self.write("d/c/deep.py", "third")
        self.write("d/z.jsonl", [{"text": "fourth"}, {"text": ""}, {"text": "fifth"}])
        self.write("d/.hidden.txt", "never")
        self.write("d/.git/config.txt", "never")
        self.write("d/picture.png", b"\x89PNG\xff")
        data = self.make(self.dir / "d", "--no-pack", "--eos", "none", tokens=16)
        read = [
            self.tokenizer.decode(list(row[:n])) for row, n in zip(data["tokens"], data["length"])
        ]
        self.assertEqual(read, ["first", "second", "fourth", "fifth", "third"])
        self.assertIn("1 empty skipped", self.printed)
        hashes = [s["sha256"] for s in json.loads(data["attributes"]["sources"])]
        self.assertEqual(
            data["attributes"]["source_sha256"],
            hashlib.sha256("".join(h + "\n" for h in hashes).encode()).hexdigest(),
        )

    def test_long_document_in_pieces(self):
        self.use(byte_bpe(), settings={"bos_token": END, "add_bos_token": True})
        text = "\n\n    ".join(CORPUS * 30) + "\u4e2d\u00e9" * 40
        path = self.write("a.jsonl", [{"text": text}, {"text": "short"}])
        whole = self.make(path)["tokens"]
        with mock.patch.object(tokenize.rows, "PIECE_CHARACTERS", 100):
            pieces = self.make(path, "--force")["tokens"]
        np.testing.assert_array_equal(pieces, whole)
        self.assertEqual((whole == self.tokenizer.token_to_id(END)).sum(), 3)  # begin, end, begin
        path = self.write("a.txt", text)
        whole = self.make(path, "--force")["tokens"]
        for size in (1, 2, 3, 50):
            with mock.patch.object(tokenize.sources, "CHUNK_BYTES", size):
                chunks = self.make(path, "--force")["tokens"]
            np.testing.assert_array_equal(chunks, whole)

    def test_pieces_join_to_the_text(self):
        texts = (
            "",
            "abcdefghijk",
            "ab\ncd\nef\ngh",
            "\n" * 8,
            "abcde\n      x",
            "\n" * 5 + "a" * 11,
        )
        with mock.patch.object(tokenize.rows, "PIECE_CHARACTERS", 5):
            for text in texts:
                for chunks in ((text,), tuple(text), (text[:4], text[4:], "")):
                    pieces = list(tokenize.rows.pieces_of(chunks))
                    self.assertEqual("".join(piece for piece, _ in pieces), text)
                    self.assertEqual(
                        [last for _, last in pieces], [False] * (len(pieces) - 1) + [True]
                    )
            for text, pieces in (
                ("a\nb\n  c\nd", ["a\n", "b\n  c", "\nd"]),
                ("ab cd\n  ef", ["ab", " cd\n ", " ef"]),
                ("a\nbc d", ["a\n", "bc d"]),
            ):
                self.assertEqual([piece for piece, _ in tokenize.rows.pieces_of((text,))], pieces)

    def test_max_sequences(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        everything = self.make(path)["tokens"]
        some = self.make(path, "--max-sequences", 3, "--force")
        np.testing.assert_array_equal(some["tokens"], everything[:3])
        self.assertEqual(
            some["attributes"]["source_sha256"],
            hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(),
        )

    def test_many_blocks(self):
        path = self.write("a.txt", "\n".join(CORPUS * 5))
        whole = self.make(path)["tokens"]
        with (
            mock.patch.object(tokenize.output, "BLOCK_TOKENS", 24),
            mock.patch.object(tokenize.rows, "BATCH_TEXTS", 1),
        ):
            np.testing.assert_array_equal(self.make(path, "--force")["tokens"], whole)

    def test_byte_order_mark_and_line_ends_stay_out_and_in(self):
        path = self.write("a.txt", b"\xef\xbb\xbfone\r\ntwo")
        data = self.make(path, "--no-pack", "--eos", "none", tokens=32)
        self.assertEqual(
            self.tokenizer.decode(list(data["tokens"][0][: data["length"][0]])), "one\r\ntwo"
        )


class Around(Case):
    """What goes before and behind a document."""

    def stream(self, *arguments):
        path = self.write("a.jsonl", [{"text": "a b"}, {"text": "c"}])
        data = self.make(path, "--keep-rest", "--force", *arguments, tokens=64)
        return data["tokens"][0][: data["length"][0]].tolist()

    def test_llama_like(self):
        self.use(llama_like())
        ids = {
            piece: self.tokenizer.token_to_id(piece)
            for piece in ("\u2581a", "\u2581b", "\u2581", "c")
        }
        a, b, mark, c = ids.values()
        self.assertEqual(self.stream(), [1, a, b, 2, 1, mark, c, 2])
        self.assertEqual(self.stream("--bos", "none"), [a, b, 2, mark, c, 2])
        self.assertEqual(self.stream("--eos", "none"), [1, a, b, 1, mark, c])
        self.assertEqual(self.stream("--bos", "none", "--eos", "<unk>"), [a, b, 0, mark, c, 0])

    def test_settings_ask_for_a_begin_token(self):
        self.use(byte_bpe(), settings={"bos_token": {"content": END}, "add_bos_token": True})
        end = self.tokenizer.token_to_id(END)
        self.assertEqual(self.stream()[0], end)
        self.use(byte_bpe(), settings={"bos_token": END, "add_bos_token": False})
        self.assertNotEqual(self.stream()[0], end)

    def test_document_token_before_turn_token(self):
        tokenizer = byte_bpe()
        tokenizer.add_special_tokens(["<|im_end|>"])
        self.use(tokenizer, settings={"eos_token": "<|im_end|>"})
        self.assertEqual(self.stream()[-1], tokenizer.token_to_id(END))
        self.assertEqual(
            self.stream("--eos", "<|im_end|>")[-1], tokenizer.token_to_id("<|im_end|>")
        )

    def test_unknown_token(self):
        path = self.write("a.txt", "text")
        self.assert_stops(64, "--eos <nothing>", arguments=[path, "--eos", "<nothing>"])

    def test_truncation_and_padding_of_the_tokenizer_are_off(self):
        tokenizer = byte_bpe()
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=50)
        self.use(tokenizer)
        self.assertEqual(
            self.stream(),
            [self.tokenizer.token_to_id(t) for t in ("a", "\u0120", "b", END, "c", END)]
            if self.tokenizer.token_to_id("\u0120b") is None
            else [self.tokenizer.token_to_id(t) for t in ("a", "\u0120b", END, "c", END)],
        )


class Template(Case):
    LINES = [
        {"question": "what is 7 + 5?", "answer": "7 + 5 = 12"},
        {"question": "the cat", "answer": " sat\n on the mat "},
        {"question": "two and", "answer": "two make four"},
        {"question": "\u00e9\u4e2d?", "answer": "\u00e4\U0001f642\u00e9 \u4e2d"},
        {"question": "", "answer": "the dog"},
        {"question": "number", "answer": 12},
    ]

    def check_masks(self, template, lines, tokens=64, arguments=(), first=0):
        """Every token is judged by the bytes it stands for, without the tokenizer's offsets."""
        path = self.write("a.jsonl", lines)
        data = self.make(
            path,
            "--template",
            template,
            "--loss-on",
            "answer",
            "--force",
            *arguments,
            tokens=tokens,
        )
        self.assertEqual(self.types["loss_mask"], np.dtype("uint8"))
        self.assertEqual(self.types["length"], np.dtype("int32"))
        self.assertEqual(len(data["tokens"]), len(lines))
        alphabet = bytes_of_alphabet()
        for line, ids, length, mask in zip(
            lines, data["tokens"], data["length"], data["loss_mask"]
        ):
            head, tail = template.replace("\\n", "\n").split("{answer}")
            before = head.format(question=line["question"]).encode()
            answer = str(line["answer"]).encode()
            pieces = [
                bytes(alphabet[c] for c in self.tokenizer.id_to_token(i)) for i in ids[:length]
            ]
            self.assertEqual(b"".join(pieces), before + answer + tail.encode())
            position, expected = 0, []
            for piece in pieces:
                expected.append(
                    int(
                        position < len(before) + len(answer) and position + len(piece) > len(before)
                    )
                )
                position += len(piece)
            expected[0] = 0
            self.assertEqual(mask[:length].tolist(), expected)
            self.assertFalse(mask[length:].any())
            self.assertTrue((ids[length:] == self.tokenizer.token_to_id(END)).all())
        return data

    def test_masks_cover_the_answer(self):
        for trim in (False, True):
            with self.subTest(trim_offsets=trim):
                self.use(byte_bpe(trim=trim))
                self.check_masks(r"{question}\n{answer}", self.LINES)
                self.check_masks(r"q: {question}\n\na: {answer} .", self.LINES)

    def test_merges_across_the_border(self):
        tokenizer = byte_bpe(vocab=420, crossing=True)
        self.use(tokenizer)
        template, line = "{question} {answer}", {"question": "two and", "answer": "two make four"}
        text = "two and two make four"
        border = len("two and ")
        crossing = [o for o in tokenizer.encode(text).offsets if o[0] < border < o[1]]
        self.assertTrue(crossing, "the case must have a token that reaches over the border")
        alone = tokenizer.encode("two make four").ids
        data = self.check_masks(template, [line, *self.LINES])
        counted = data["tokens"][0][data["loss_mask"][0] == 1].tolist()
        self.assertNotEqual(
            counted, alone, "tokenising the answer by itself would give other tokens"
        )

    def test_several_counted_fields(self):
        path = self.write("a.jsonl", [{"q": "the cat", "why": "two", "a": "four"}])
        data = self.make(
            path, "--template", r"{q}\n{why}\n{a}", "--loss-on", "why", "--loss-on", "a", tokens=32
        )
        ids, mask = data["tokens"][0], data["loss_mask"][0]
        self.assertEqual(self.tokenizer.decode(ids[mask == 1].tolist()), "twofour")
        self.assertEqual(data["attributes"]["loss_on"], "why,a")
        self.assertEqual(data["attributes"]["template"], "{q}\n{why}\n{a}")

    def test_begin_and_end_tokens_do_not_count(self):
        tokenizer = llama_like()
        self.use(tokenizer)
        path = self.write("a.jsonl", [{"question": "a", "answer": "b"}])
        data = self.make(
            path,
            "--template",
            "{question} {answer}",
            "--loss-on",
            "answer",
            "--eos",
            "</s>",
            tokens=8,
        )
        ids = [1, tokenizer.token_to_id("\u2581a"), tokenizer.token_to_id("\u2581b"), 2]
        self.assertEqual(data["tokens"][0].tolist(), ids + [2] * 4)
        self.assertEqual(data["loss_mask"][0].tolist(), [0, 0, 1, 0, 0, 0, 0, 0])
        self.assertEqual(data["length"].tolist(), [4])

    def test_overlong_rows(self):
        lines = [
            {"question": "the cat", "answer": "sat"},
            {"question": "the cat " * 20, "answer": "sat"},
            {"question": "the", "answer": "cat " * 30},
            {"question": "the dog", "answer": ""},
        ]
        path = self.write("a.jsonl", lines)
        arguments = [path, "--template", r"{question}\n{answer}", "--loss-on", "answer"]
        data = self.make(*arguments, tokens=16)
        self.assertEqual(len(data["tokens"]), 1)
        self.assertIn("2 overlong dropped", self.printed)
        self.assertIn("1 without a token to predict skipped", self.printed)
        data = self.make(*arguments, "--overlong", "truncate", "--force", tokens=16)
        self.assertEqual(data["length"].tolist(), [self.length(lines[0]), 16])
        self.assertIn("1 truncated", self.printed)
        self.assertIn("2 without a token to predict skipped", self.printed)

    def length(self, line):
        return len(self.tokenizer.encode(f"{line['question']}\n{line['answer']}").ids)

    def test_exact_width_is_not_overlong(self):
        line = {"question": "the cat", "answer": "sat on the mat"}
        path = self.write("a.jsonl", [line])
        width = self.length(line)
        arguments = [path, "--template", r"{question}\n{answer}", "--loss-on", "answer"]
        self.assertEqual(self.make(*arguments, tokens=width)["length"].tolist(), [width])
        self.assert_stops(
            65, "1 were longer than", arguments=[*arguments, "--force"], tokens=width - 1
        )

    def test_template_without_mask(self):
        path = self.write("a.jsonl", self.LINES)
        data = self.make(path, "--template", r"{question}\n{answer}", tokens=64)
        self.assertNotIn("loss_mask", data)
        self.assertEqual(len(data["length"]), len(self.LINES))
        data = self.make(path, "--template", r"{question}\n{answer}", "--pack", "--force")
        self.assertNotIn("length", data)

    def test_braces_and_escapes(self):
        path = self.write("a.jsonl", [{"text": "the"}])
        data = self.make(path, "--template", r"\\{{{text}}}\t", tokens=16)
        self.assertEqual(
            self.tokenizer.decode(data["tokens"][0][: data["length"][0]].tolist()), "\\{the}\t"
        )


def bytes_of_alphabet():
    """{character of a byte-level token: byte}, from its definition."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {**{chr(b): b for b in keep}, **{chr(256 + i): b for i, b in enumerate(rest)}}


class Vocabulary(Case):
    def test_from_the_model(self):
        self.use(byte_bpe(), config={"vocab_size": 512})
        path = self.write("a.txt", "\n".join(CORPUS))
        self.assertEqual(self.make(path)["attributes"]["vocab_size"], 512)
        self.assertEqual(
            self.make(path, "--vocab-size", 400, "--force")["attributes"]["vocab_size"], 400
        )

    def test_ids_beyond_it(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        self.assert_stops(65, "beyond the vocabulary of 260", arguments=[path, "--vocab-size", 260])


if __name__ == "__main__":
    unittest.main()
