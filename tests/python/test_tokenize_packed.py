"""zstd, Parquet and damaged records in launch/tokenize.py; run as test_tokenize.py."""

import datetime
import decimal
import hashlib
import io
import json
import os
import pathlib
import sys
import threading
import unittest
from unittest import mock

import pyarrow
import zstandard
from pyarrow import parquet

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, Case, tokenize

RECORDS = [{"text": text} for text in ("first", "second", "the third")]
TEXTS = [record["text"] for record in RECORDS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


class Packed(Case):
    def read_back(self, *arguments):
        data = self.make(*arguments, "--no-pack", "--eos", "none", "--force", tokens=64)
        self.attributes = data["attributes"]
        self.sources = json.loads(data["attributes"]["sources"])
        return [
            self.tokenizer.decode(list(row[:n])) for row, n in zip(data["tokens"], data["length"])
        ]


def zst(content, **keys):
    return zstandard.ZstdCompressor(**keys).compress(content.encode())


class Zstd(Packed):
    def test_forms(self):
        skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
        long = zstandard.ZstdCompressionParameters.from_level(3, window_log=30)
        for name, raw in (
            ("a.jsonl.zst", zst(LINES)),
            ("a.ndjson.zstd", zst(LINES)),
            ("a.json.zst", zst(json.dumps(RECORDS))),
            ("no-ending.zst", zst(LINES)),
            ("frames.jsonl.zst", zst(LINES[:20]) + skippable + zst("") + zst(LINES[20:])),
            ("long.jsonl.zst", zst(LINES, compression_params=long)),
            ("sum.jsonl.zst", zst(LINES, write_checksum=True)),
        ):
            with self.subTest(name=name):
                path = self.write(name, raw)
                self.assertEqual(self.read_back(path), TEXTS)
                self.assertEqual(self.attributes["source_sha256"], hashlib.sha256(raw).hexdigest())
                self.assertEqual(self.sources[0]["bytes"], len(raw))
                self.assertIn("zstd", self.sources[0]["form"])
        self.assertEqual(self.read_back(self.write("a.txt.zst", zst("words"))), ["words"])

    def test_streams(self):
        """What comes out is handed on in blocks, however well it was packed."""
        raw = zst("a" * 50_000_000)
        stream = tokenize.sources.unpacked(io.BytesIO(raw), "zstd", "a.zst")
        sizes = []
        while block := stream.read(1 << 20):
            sizes.append(len(block))
        self.assertEqual((sum(sizes), max(sizes)), (50_000_000, 1 << 20))

    def test_pipe(self):
        pipe = self.dir / "pipe.jsonl.zst"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(zst(LINES),))
        writer.start()
        self.assertEqual(self.read_back(pipe), TEXTS)
        writer.join()

    def test_damaged(self):
        whole = zst("".join(CORPUS) * 50, write_checksum=True)
        for name, raw in (
            ("cut.txt.zst", whole[:-5]),
            ("cut2.txt.zst", whole[:4]),
            ("noise.txt.zst", b"no zstd at all"),
            ("behind.txt.zst", whole + b"noise"),
            ("flipped.txt.zst", whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]),
        ):
            with self.subTest(name=name):
                self.assert_stops(65, name, "damaged", arguments=[self.write(name, raw)])

    def test_without_the_package(self):
        path = self.write("a.jsonl.zst", zst(LINES))
        with mock.patch.dict(sys.modules, {"zstandard": None}):
            self.assert_stops(69, "zstandard is missing", "setup.sh", arguments=[path])


class Parquet(Packed):
    def table(self, name, columns, **keys):
        path = self.dir / name
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(columns), path, **keys)
        return str(path)

    def test_forms(self):
        for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
            path = self.table(
                "a.parquet", {"text": TEXTS, "url": ["x"] * 3}, compression=codec, row_group_size=2
            )
            with self.subTest(codec=codec):
                self.assertEqual(self.read_back(path), TEXTS)
                raw = pathlib.Path(path).read_bytes()
                self.assertEqual(self.attributes["source_sha256"], hashlib.sha256(raw).hexdigest())
                self.assertEqual(
                    (self.sources[0]["bytes"], self.sources[0]["form"]), (len(raw), "parquet")
                )
        os.rename(path, self.dir / "a.pq")
        self.assertEqual(sorted(self.read_back(self.dir / "a.pq", "--seed", 3)), sorted(TEXTS))
        os.rename(self.dir / "a.pq", self.dir / "a.data")
        self.assertEqual(self.read_back(self.dir / "a.data", "--input-format", "parquet"), TEXTS)
        for kind in (pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary()):
            column = pyarrow.array([t.encode() for t in TEXTS], pyarrow.binary()).cast(kind)
            self.assertEqual(self.read_back(self.table("b.parquet", {"text": column})), TEXTS)
        column = pyarrow.array(TEXTS * 2).dictionary_encode()
        self.assertEqual(self.read_back(self.table("c.parquet", {"text": column})), TEXTS * 2)

    def test_many_rows_and_line_ends(self):
        texts = [f'{i}\nnext \u4e2d "q" {i}' for i in range(1500)]
        path = self.table("a.parquet", {"text": texts}, row_group_size=400)
        self.assertEqual(self.read_back(path), texts)

    def test_template_and_choices(self):
        path = self.table(
            "a.parquet",
            {
                "question": ["2 + 3"],
                "answer": [5],
                "score": [1.5],
                "when": [datetime.datetime(2020, 1, 1)],
                "cost": [decimal.Decimal("1.10")],
                "blob": [b"\xff"],
            },
        )
        self.assertEqual(self.read_back(path, "--template", "{question} = {answer}"), ["2 + 3 = 5"])
        self.assertEqual(
            self.read_back(path, "--template", "{score} {cost} {when}"),
            ["1.5 1.10 2020-01-01 00:00:00"],
        )
        self.assert_stops(
            65, "'blob' is no text", "null", arguments=[path, "--field", "blob", "--force"]
        )
        self.assert_stops(
            65,
            "a.parquet:1",
            "no field 'text'",
            "question, answer, score",
            arguments=[path, "--force"],
        )
        path = self.table(
            "arc.parquet",
            {
                "id": ["a"],
                "question": ["Which is hot?"],
                "answerKey": ["B"],
                "choices": [{"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]}],
            },
        )
        data = self.make(path, "--task", "multiple_choice", "--force", tokens=64)
        self.assertEqual(data["correct"].tolist(), [0, 1, 0])

    def test_directories(self):
        self.table("d/a.parquet", {"text": TEXTS[:2]})
        self.table("d/b.parquet", {"text": pyarrow.array([], pyarrow.string())})
        self.write("d/c.parquet.gz", b"x")
        self.write("d/d.jsonl", [RECORDS[2]])
        self.assertEqual(self.read_back(self.dir / "d"), TEXTS)
        self.assertIn("b.parquet (empty)", self.printed)
        self.assertIn("c.parquet.gz (compressed Parquet is not read)", self.printed)

    def test_what_is_no_text(self):
        for column, word in (
            ([*TEXTS, None], "null"),
            ([[1], [2], [3], [4]], "an array"),
            ([1, 2, 3, 4], "a number"),
        ):
            path = self.table("a.parquet", {"text": column})
            line = 4 if None in column else 1
            self.assert_stops(65, f"a.parquet:{line}", word, arguments=[path])
        path = self.table("a.parquet", {"x": [float("nan")]})
        self.assert_stops(65, "a.parquet:1", "NaN", arguments=[path, "--template", "{x}"])

    def test_damaged(self):
        whole = pathlib.Path(
            self.table("a.parquet", {"text": CORPUS}, compression="none")
        ).read_bytes()
        at = whole.index(b"cat sat")
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        for name, raw in (
            ("cut.parquet", whole[:-20]),
            ("head.parquet", whole[:100]),
            ("noise.parquet", b"no table at all"),
            ("letters.parquet", whole[:at] + b"\xff" + whole[at + 1 :]),
            ("footer.parquet", whole[:footer] + b"\xff" * 8 + whole[footer + 8 :]),
        ):
            with self.subTest(name=name):
                self.assert_stops(65, name, arguments=[self.write(name, raw)])
        for name in ("a.parquet.gz", "a.parquet.zst"):
            self.assert_stops(65, "compressed", "end", arguments=[self.write(name, b"x")])
        os.mkfifo(self.dir / "pipe.parquet")
        self.assert_stops(65, "pipe", "end", arguments=[self.dir / "pipe.parquet"])

    def test_without_the_package(self):
        path = self.table("a.parquet", {"text": TEXTS})
        with mock.patch.dict(sys.modules, {"pyarrow": None}):
            self.assert_stops(69, "pyarrow is missing", arguments=[path])


class SkipDamaged(Packed):
    LINES = (
        '{"text": "first"}\n{"text": \n{"text": null}\n\n{"text": "second"}\n[]\n{"other": 1}\n'
        '{"text": "\\ud800"}\n{"text": "the third"}\n'
    )

    def skipped(self, *arguments, tokens=64):
        """(lines of the summary that tell, the note)"""
        code, printed, errors = self.run_main(
            *arguments, "--skip-damaged", "--force", tokens=tokens
        )
        self.assertEqual(code, 0, errors)
        lines = printed.splitlines()
        at = next((i for i, line in enumerate(lines) if "damaged" in line), len(lines))
        return lines[at:], errors

    def test_records(self):
        path = self.write("a.jsonl", self.LINES)
        self.assert_stops(65, "a.jsonl:2", arguments=[path])
        lines, note = self.skipped(path, "--no-pack")
        self.assertEqual(lines[0], "skipped as damaged 5:")
        for line, number in zip(lines[1:], (2, 3, 6, 7, 8), strict=True):
            self.assertIn(f"a.jsonl:{number}: ", line)
        self.assertRegex(
            note, r"^tokenize: note: 5 damaged records were skipped; the first: .*a\.jsonl:2: .*\n$"
        )
        code, printed, errors = self.run_main(
            path, "--skip-damaged", "--force", "--no-pack", "--quiet"
        )
        self.assertEqual((code, printed, errors), (0, "", note))

    def test_bytes_that_are_no_utf8(self):
        path = self.write("a.jsonl", b'{"text": "\xff"}\n{"text": "fine"}\n')
        lines, _ = self.skipped(path, "--no-pack")
        self.assertIn("0xff", lines[1])
        self.assertEqual(len(lines), 2)

    def test_the_list_is_capped(self):
        path = self.write("a.jsonl", "{\n" * 50 + LINES)
        lines, note = self.skipped(path, "--no-pack")
        self.assertEqual((len(lines), lines[-1]), (22, "  and 30 more"))
        self.assertIn("50 damaged", note)

    def test_items_and_questions(self):
        good = {"question": "q", "choices": ["a", "b"], "answer": 0}
        path = self.write(
            "a.jsonl", [good, {**good, "answer": 7}, {**good, "choices": ["a"]}, good]
        )
        lines, _ = self.skipped(path, "--task", "multiple_choice")
        self.assertEqual(len(lines), 3)
        self.assertIn("none of the choices", lines[1])
        path = self.write("b.jsonl", [{"question": "q", "answer": "1"}, {"question": "q"}])
        lines, _ = self.skipped(path, "--task", "exact_match", "--shots", 0)
        self.assertEqual(len(lines), 2)
        # What is wrong with an example is wrong for every question.
        self.assert_stops(
            65,
            "b.jsonl:2",
            arguments=[
                path,
                "--task",
                "exact_match",
                "--shots-from",
                path,
                "--shots",
                1,
                "--skip-damaged",
                "--force",
            ],
            tokens=64,
        )

    def test_what_is_never_skipped(self):
        path = self.write("a.jsonl", "{\n[\n")
        self.assert_stops(
            65, "no row was written", "2 damaged", "a.jsonl:1", arguments=[path, "--skip-damaged"]
        )
        path = self.write("a.jsonl", LINES)
        arguments = [path, "--skip-damaged", "--vocab-size", 5]
        self.assert_stops(65, "beyond the vocabulary", arguments=arguments)
        path = self.write("a.txt", b"\xff")
        self.assert_stops(65, "not UTF-8", arguments=[path, "--skip-damaged"])
        path = self.write("a.json", '[{"text": "a"}, 5]')
        self.assert_stops(65, "a.json:1", arguments=[path, "--skip-damaged"])
        path = self.write("b.jsonl", LINES * 50)
        real = tokenize.rows.write_rows

        def changing(*arguments):
            os.truncate(path, 100)
            real(*arguments)

        with mock.patch.object(tokenize.rows, "write_rows", changing):
            self.assert_stops(65, "changed while", arguments=[path, "--skip-damaged"])


if __name__ == "__main__":
    unittest.main()
