"""What launch/tokenize.py reads, passes over and refuses; run as test_tokenize.py."""

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import h5py
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, END, SCRIPT, Case, byte_bpe, tokenize

RECORDS = [{"text": text} for text in ("first", "second", "the third")]
TEXTS = [record["text"] for record in RECORDS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


class Input(Case):
    def read_back(self, *arguments):
        """The texts of the rows, one document a row."""
        data = self.make(*arguments, "--no-pack", "--eos", "none", "--force", tokens=64)
        self.attributes = data["attributes"]
        self.sources = json.loads(data["attributes"]["sources"])
        return [
            self.tokenizer.decode(list(row[:n])) for row, n in zip(data["tokens"], data["length"])
        ]

    def passed_over(self):
        """The lines of the summary behind its first."""
        return self.printed.splitlines()[1:]


class Kinds(Input):
    def test_every_form_of_records(self):
        array = json.dumps(RECORDS, indent=2)
        for name, content in (
            ("a.jsonl", LINES),
            ("a.ndjson", LINES),
            ("a.jsonlines", LINES),
            ("a.JSONL", LINES),
            ("array.json", array),
            ("array-bom.json", b"\xef\xbb\xbf" + array.encode()),
            ("lines.json", LINES),
            ("values.json", "\n".join(json.dumps(r, indent=1) for r in RECORDS)),
            ("crlf.jsonl", LINES.replace("\n", "\r\n")),
            ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
            ("bom-line.jsonl", b"\xef\xbb\xbf\n" + LINES.encode()),
            ("blank.jsonl", "\n \n" + LINES + "\n\n"),
            ("no-ending", LINES),
        ):
            with self.subTest(name=name):
                self.assertEqual(self.read_back(self.write(name, content)), TEXTS)

    def test_strings_of_a_json_array_hide_its_marks(self):
        texts = ['a "]},{" b', "back\\slash \\", "{[\n", "} ]"]
        path = self.write("a.json", json.dumps([{"meta": [{}, ["x]"]], "text": t} for t in texts]))
        self.assertEqual(self.read_back(path), texts)
        for size in (1, 2, 3, 7):
            with mock.patch.object(tokenize.sources, "CHUNK_BYTES", size):
                self.assertEqual(self.read_back(path), texts)

    def test_compressed(self):
        for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
            for inner, content, texts in (
                ("jsonl", LINES, TEXTS),
                ("json", json.dumps(RECORDS), TEXTS),
                ("txt", "plain words", ["plain words"]),
            ):
                with self.subTest(name=name, inner=inner):
                    raw = pack(content.encode())
                    path = self.write(f"a.{inner}.{name}", raw)
                    self.assertEqual(self.read_back(path), texts)
                    self.assertEqual(
                        self.attributes["source_sha256"], hashlib.sha256(raw).hexdigest()
                    )
                    self.assertEqual(self.sources[0]["bytes"], len(raw))
        path = self.write("two.jsonl.gz", gzip.compress(b"") + gzip.compress(LINES.encode()))
        self.assertEqual(sorted(self.read_back(path, "--seed", 4)), sorted(TEXTS))
        self.assertEqual(
            {p.name for p in self.dir.iterdir() if "tmp" in p.name or "spool" in p.name}, set()
        )

    def test_damaged_compressed_input(self):
        whole = gzip.compress("".join(CORPUS).encode() * 50)
        for name, raw in (
            ("cut.txt.gz", whole[:-9]),
            ("noise.txt.gz", b"no gzip at all"),
            ("flipped.txt.gz", whole[:40] + b"\xff\xff\xff\xff" + whole[44:]),
            ("cut.txt.xz", lzma.compress(b"text" * 100)[:-9]),
            ("cut.txt.bz2", bz2.compress(b"text" * 100)[:-9]),
        ):
            with self.subTest(name=name):
                self.assert_stops(65, name, "damaged", arguments=[self.write(name, raw)])

    def test_named_pipe(self):
        pipe = self.dir / "pipe"
        os.mkfifo(pipe)
        for content, texts in ((LINES, TEXTS), ("plain words\nof text", ["plain words\nof text"])):
            writer = threading.Thread(target=pipe.write_bytes, args=(content.encode(),))
            writer.start()
            self.assertEqual(sorted(self.read_back(pipe, "--seed", 3)), sorted(texts))
            writer.join()
            self.assertEqual(self.sources[0]["path"], str(pipe))
            self.assertEqual(
                self.sources[0]["sha256"], hashlib.sha256(content.encode()).hexdigest()
            )
            self.assertIn("pipe", self.sources[0]["form"])

    def test_process_substitution_and_standard_input(self):
        packed = self.write("a.jsonl.gz", gzip.compress(LINES.encode()))
        common = (
            f"'{sys.executable}' '{SCRIPT}' --tokenizer '{self.dir}/model' --out '{self.out}' "
            "--sequence-tokens 8 --force --no-pack"
        )
        plain = self.write("a.jsonl", LINES)
        for command in (
            f"{common} <(gzip -dc '{packed}')",
            f"gzip -dc '{packed}' | {common} /dev/stdin",
            f"{common} --template '{{text}}' <(gzip -dc '{packed}')",
            f"{common} /dev/stdin < '{plain}'",
            f"{common} --input-format jsonl <(gzip -dc '{packed}')",
        ):
            with self.subTest(command=command):
                done = subprocess.run(
                    ["bash", "-c", command], capture_output=True, text=True, timeout=300
                )
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                with h5py.File(self.out) as file:
                    self.assertEqual(len(file["tokens"]), 3)
                    self.assertIn("/dev/", json.loads(file.attrs["sources"])[0]["path"])

    def test_format_can_be_told(self):
        path = self.write("a.txt", LINES)
        self.assertEqual(self.read_back(path, "--input-format", "jsonl"), TEXTS)
        path = self.write("one.data", '{"a": 1}')
        self.assertEqual(self.read_back(path, "--input-format", "text"), ['{"a": 1}'])
        self.assert_stops(64, "--input-format", arguments=[path, "--input-format", "csv"])

    def test_devices(self):
        self.assert_stops(65, "/dev/zero", "device", arguments=["/dev/zero"])

    def test_what_cannot_be_read_says_how(self):
        for name in ("a.zst", "a.parquet", "a.zip", "a.jsonl.zst", "a.tar.gz"):
            with self.subTest(name=name):
                self.assert_stops(65, name, arguments=[self.write(name, b"x")])


class PassedOver(Input):
    def test_everything_is_counted_and_named(self):
        self.write("d/a.txt", "first")
        self.write("d/b.jsonl.gz", gzip.compress(b'{"text": "second"}\n'))
        self.write("d/e.jsonlines", [{"text": "third"}])
        self.write("d/f.json", [{"text": "fourth"}])
        self.write("d/picture.png", b"\x89PNG\xff")
        self.write("d/README", "words")
        self.write("d/package.json", '{"name": "x"}')
        self.write("d/comments.json", "// no JSON\n{}")
        self.write("d/.hidden.txt", "never")
        self.write("d/.git/config.txt", "never")
        self.write("d/empty.txt", "")
        self.write("d/table.arrow", b"x")
        self.write("d/x.jsonl.zip", b"x")
        os.mkfifo(self.dir / "d/waiting.txt")
        texts = self.read_back(self.dir / "d")
        self.assertEqual(texts, ["first", "second", "third", "fourth"])
        lines = self.passed_over()
        self.assertEqual(lines[0], "passed over 10 of the input:")
        for name in (
            ".git", ".hidden.txt", "README", "comments.json", "empty.txt", "package.json",
            "picture.png", "table.arrow", "waiting.txt", "x.jsonl.zip",
        ):
            self.assertEqual(sum(f"/d/{name} (" in line for line in lines[1:]), 1, name)
        self.assertEqual(len(lines), 11)
        self.assertEqual(self.attributes["passed_over"], 10)

    def test_the_list_is_capped(self):
        for i in range(75):
            self.write(f"d/{i:03}.png", b"x")
        self.write("d/a.txt", "first")
        self.read_back(self.dir / "d")
        lines = self.passed_over()
        self.assertEqual(lines[0], "passed over 75 of the input:")
        self.assertLess(len(lines), 30)
        self.assertEqual(lines[-1].strip(), f"and {75 - (len(lines) - 2)} more")

    def test_text_beside_a_template(self):
        self.write("d/a.txt", "words")
        self.write("d/b.jsonl", [{"text": "read"}])
        self.assertEqual(self.read_back(self.dir / "d", "--template", "{text}"), ["read"])
        self.assertEqual(len(self.passed_over()), 2)
        self.assertIn("a.txt (", self.passed_over()[1])

    def test_linked_directories_are_followed_once(self):
        self.write("elsewhere/deep/a.txt", "linked")
        self.write("d/b.txt", "direct")
        os.symlink("../elsewhere", self.dir / "d/link")
        os.symlink("..", self.dir / "d/loop")
        os.symlink("self", self.dir / "d/self")
        os.symlink("nowhere", self.dir / "d/dangling")
        texts = self.read_back(self.dir / "d")
        self.assertEqual(sorted(texts), ["direct", "linked"])
        text = "\n".join(self.passed_over())
        for name in ("self", "dangling"):
            self.assertIn(f"/d/{name} (", text)

    def test_a_file_given_twice_is_read_once(self):
        path = self.write("a.txt", "only once")
        os.link(path, self.dir / "hard.txt")
        os.symlink(path, self.dir / "soft.txt")
        self.assertEqual(
            self.read_back(path, path, self.dir / "hard.txt", self.dir / "soft.txt"), ["only once"]
        )
        self.assertEqual(self.passed_over()[0], "passed over 3 of the input:")

    def test_blank_documents_and_text_that_gives_no_token(self):
        path = self.write("a.jsonl", [{"text": " \n\t "}, {"text": "word"}, {"text": ""}])
        self.assertEqual(self.read_back(path), ["word"])
        self.assertIn("2 empty skipped", self.printed)
        data = self.make(path, "--keep-rest", "--force")
        self.assertEqual((data["tokens"] == self.tokenizer.token_to_id(END)).sum(), 1 + 8
                         - data["length"][0])

    def test_a_stop_at_the_limit_is_told(self):
        path = self.write("a.jsonl", RECORDS)
        self.read_back(path, "--max-sequences", 1)
        self.assertIn("stopped at --max-sequences", self.printed)


class Names(Input):
    """Names of files that are no UTF-8, or not in one line."""

    def test_name_that_is_no_utf8(self):
        raw = os.fsencode(self.dir / "d") + b"/bad-\xff\xe9.txt"
        (self.dir / "d").mkdir()
        with open(raw, "wb") as file:
            file.write(b"words of a text")
        with open(os.fsencode(self.dir / "d") + b"/other-\xff.png", "wb") as file:
            file.write(b"x")
        self.assertEqual(self.read_back(self.dir / "d"), ["words of a text"])
        self.assertIn("bad-\\xff\\xe9.txt", self.sources[0]["path"])
        self.assertIn("other-\\xff.png", self.printed)

    def test_name_of_the_output_and_of_the_console(self):
        path = self.write("\u00e9 \u4e2d.txt", "\n".join(CORPUS))
        out = os.fsencode(self.dir) + b"/out-\xff-\xc3\xa9.h5"
        command = [sys.executable, SCRIPT, "--tokenizer", self.dir / "model", "--out", out]
        for locale in ("C", "C.UTF-8"):
            done = subprocess.run(
                [*command, "--sequence-tokens", "8", "--force", path],
                capture_output=True,
                env={**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": "ascii:strict"},
            )
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertIn(b"out-\\xff-", done.stdout)
            self.assertTrue(os.path.exists(out))

    def test_newline_in_a_name(self):
        self.write("d/two\nlines.txt", "words of a text")
        self.write("d/no\nending", "x")
        self.assertEqual(self.read_back(self.dir / "d"), ["words of a text"])
        self.assertEqual(len(self.passed_over()), 2)
        self.assertTrue(self.sources[0]["path"].endswith("d/two\nlines.txt"))
        self.assert_stops(
            65, "bad\\nname.txt", arguments=[self.write("bad\nname.txt", b"\xff"), "--force"]
        )

    def test_words_of_the_command_line_that_are_no_utf8(self):
        path = self.write("a.jsonl", RECORDS)
        for flag in ("--template", "--field", "--eos"):
            word = "{text}\udcff"
            arguments = [flag, word]
            with self.subTest(arguments=arguments):
                self.assert_stops(64, "UTF-8", arguments=[path, *arguments])

    def test_many_sources(self):
        """Their list is longer than what HDF5 keeps beside an object."""
        for i in range(1200):
            self.write(f"d/{i:04}-{'x' * 60}.txt", "a")
        data = self.make(self.dir / "d")
        self.assertEqual(len(json.loads(data["attributes"]["sources"])), 1200)


class NotText(Input):
    def test_what_is_no_text(self):
        for value, words in (
            ("NaN", "NaN"),
            ("Infinity", "Infinity"),
            ("-Infinity", "-Infinity"),
            ("12", "number"),
            ("1.5", "number"),
            ("null", "null"),
            ("true", "true"),
            ('{"text": "inner"}', "object"),
            ('["a", "b"]', "array"),
            ('"\\ud800"', "surrogate"),
            ('"a\\udc00b"', "surrogate"),
        ):
            with self.subTest(value=value):
                path = self.write("a.jsonl", f'{{"text": "fine"}}\n{{"text": {value}}}\n')
                self.assert_stops(65, "a.jsonl:2", words, arguments=[path])
                if value[0] not in "1":
                    self.assert_stops(
                        65, "a.jsonl:2", words, arguments=[path, "--template", "{text}"]
                    )

    def test_numbers_of_a_template_stand_as_they_were_written(self):
        path = self.write(
            "a.jsonl", '{"q": 1.10, "a": 123456789012345678901234567890}\n{"q": -0.0, "a": 1e400}\n'
        )
        self.assertEqual(
            self.read_back(path, "--template", "{q}={a}"),
            ["1.10=123456789012345678901234567890", "-0.0=1e400"],
        )

    def test_fields_that_are_not_used_may_hold_anything(self):
        path = self.write("a.jsonl", '{"text": "fine", "score": NaN, "more": [1, null]}\n')
        self.assertEqual(self.read_back(path), ["fine"])

    def test_whole_pair_of_surrogates_is_a_character(self):
        path = self.write("a.jsonl", '{"text": "\\ud83d\\ude00"}\n')
        self.assertEqual(self.read_back(path), ["\U0001f600"])

    def test_zero_bytes(self):
        self.assert_stops(
            65, "a.txt", "zero byte", "offset 3", arguments=[self.write("a.txt", b"abc\0def")]
        )
        path = self.write("w.txt", "text".encode("utf-16le"))
        self.assert_stops(65, "zero byte", arguments=[path])

    def test_broken_json(self):
        for content, words in (
            ("[", "a.json"),
            ('[{"text": "a"}', "a.json"),
            ('[{"text": "a"}, 5]', "a.json:1"),
            ('[{"text": "a"},,{"text": "b"}]', "a.json:1"),
            ('[{"text": "a"}]\n x', "a.json:2"),
            ('[\n{"text": "a"}\n{"text": "b"}]', "a.json:3"),
            ('[{"text": "a"},\n{"text": NaN}]', "a.json:2"),
            ('[{"text": "a"},\n{"text": "b}]', "a.json:2"),
            ('{"data": [1]}', "no field 'text'"),
            ("word", "a.json:1"),
            ("[]", "no row was written"),
            ("", "no row was written"),
        ):
            with self.subTest(content=content):
                self.assert_stops(65, words, arguments=[self.write("a.json", content)])

    def test_line_without_end(self):
        with mock.patch.object(tokenize.sources, "MOST_LINE_BYTES", 100):
            path = self.write("a.jsonl", [{"text": "a"}, {"text": "b" * 200}])
            self.assert_stops(65, "a.jsonl:2", "100 bytes", arguments=[path])


class NothingIsLost(Input):
    def test_output_is_an_input(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        raw = pathlib.Path(path).read_bytes()
        os.link(path, self.dir / "same.txt")
        for out in (path, self.dir / "same.txt"):
            self.assert_stops(64, "also an input", arguments=[path, "--force"], out=out)
        self.assertEqual(pathlib.Path(path).read_bytes(), raw)

    def test_output_inside_an_input_directory(self):
        self.write("d/a.txt", "\n".join(CORPUS))
        for _ in range(2):
            code, printed, errors = self.run_main(
                self.dir / "d", "--force", out=self.dir / "d/out.h5"
            )
            self.assertEqual((code, errors), (0, ""))
        self.assertEqual(printed.splitlines()[1:][1:2], [f"  {self.dir}/d/out.h5 (the output)"])

    def test_output_that_is_no_file(self):
        pipe = self.dir / "pipe"
        os.mkfifo(pipe)
        path = self.write("a.txt", "\n".join(CORPUS))
        for out in (pipe, "/dev/null"):
            self.assert_stops(73, "no regular file", arguments=[path, "--force"], out=out)

    def test_output_through_a_link(self):
        self.write("store/real.h5", b"old")
        link = self.dir / "link.h5"
        os.symlink("store/real.h5", link)
        path = self.write("a.txt", "\n".join(CORPUS))
        self.assertEqual(self.run_main(path, "--force", out=link)[0], 0)
        self.assertTrue(link.is_symlink())
        with h5py.File(self.dir / "store/real.h5") as file:
            self.assertIn("tokens", file)

    def test_output_that_appears_meanwhile(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        real = tokenize.rows.write_rows

        def slowly(*arguments):
            real(*arguments)
            self.out.write_bytes(b"theirs")

        with mock.patch.object(tokenize.rows, "write_rows", slowly):
            code, _, errors = self.run_main(path)
        self.assertEqual(code, 73)
        self.assertEqual(self.out.read_bytes(), b"theirs")
        kept = [p for p in self.dir.iterdir() if p.name.startswith("out") and p != self.out]
        self.assertEqual(len(kept), 1)
        self.assertIn(kept[0].name, errors)
        with h5py.File(kept[0]) as file:
            self.assertGreater(len(file["tokens"]), 0)

    def test_output_is_tried_before_the_input_is_read(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        real = open

        def refusing(name, mode="r", *rest, **keys):
            if ".tmp-" in str(name):
                raise OSError(errno.EROFS, "Read-only file system", name)
            self.assertNotEqual(str(name), path, "the input is read first")
            return real(name, mode, *rest, **keys)

        with mock.patch("builtins.open", refusing):
            self.assert_stops(77, "Read-only", arguments=[path])

    def test_numbers_that_no_attribute_can_hold(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        for flag in ("--seed", "--vocab-size"):
            self.assert_stops(64, flag, arguments=[path, flag, 10**30])
        self.assert_stops(64, "--seed", arguments=[path, "--seed", -2])
        self.assert_stops(64, "--sequence-tokens", arguments=[path], tokens=10**12)

    def test_no_space(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        usage = mock.Mock(free=10)
        with mock.patch.object(tokenize.output.shutil, "disk_usage", return_value=usage):
            self.assert_stops(74, "10 bytes", arguments=[path])

    def test_no_space_for_what_is_unpacked(self):
        path = self.write("a.txt.gz", gzip.compress("\n".join(CORPUS * 500).encode()))

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        done = subprocess.run(
            [sys.executable, SCRIPT, "--tokenizer", self.dir / "model", "--out", self.out,
             "--sequence-tokens", "8", path],
            capture_output=True, text=True, preexec_fn=limit,
        )
        self.assertEqual((done.returncode, done.stdout), (74, ""), done.stderr)
        self.assertIn("File too large", done.stderr)
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"a.txt.gz", "model"})

    def test_input_that_changes_while_it_is_read(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        real = tokenize.rows.write_rows

        def changing(*arguments):
            text = pathlib.Path(path).read_text()
            pathlib.Path(path).write_text(text.upper())
            os.utime(path, ns=(1, 1))
            real(*arguments)

        with mock.patch.object(tokenize.rows, "write_rows", changing):
            self.assert_stops(65, "changed while it was read", arguments=[path])

    def test_summary_that_cannot_be_printed(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        command = [sys.executable, SCRIPT, "--tokenizer", self.dir / "model", "--out", self.out]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, "--sequence-tokens", "8", path], stdout=full, stderr=subprocess.PIPE,
                text=True,
            )
        self.assertEqual(done.returncode, 74)
        self.assertIn("is complete", done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        with h5py.File(self.out) as file:
            self.assertGreater(len(file["tokens"]), 0)

    def test_hangup_and_interrupt(self):
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS * 4000])
        for number in (signal.SIGINT, signal.SIGHUP):
            # A suite under nohup or in a shell's background passes these signals on as ignored.
            process = subprocess.Popen(
                ["env", f"--default-signal={number.name[3:]}", sys.executable, SCRIPT,
                 "--tokenizer", self.dir / "model", "--out", self.out, "--sequence-tokens", "8", path],
                stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            while process.poll() is None and not any("tmp" in p.name for p in self.dir.iterdir()):
                time.sleep(0.005)
            process.send_signal(number)
            printed, errors = process.communicate(timeout=300)
            self.assertEqual((process.returncode, printed), (128 + number, b""), errors)
            self.assertEqual({p.name for p in self.dir.iterdir()}, {"a.jsonl", "model"})

    def test_a_bug_is_told_as_one(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        with mock.patch.object(tokenize.rows, "write_rows", side_effect=KeyError("odd")):
            code, _, errors = self.run_main(path)
        self.assertEqual(code, 70)
        self.assertIn("KeyError", errors)
        self.assertFalse(self.out.exists())


class Around(Input):
    def test_begin_token_without_the_letter_a(self):
        """A vocabulary of digits cannot encode any letter; its begin and end tokens count."""
        tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "1": 2, "2": 3}))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair=None, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        tokenizer.add_special_tokens(["<s>", "</s>"])
        self.use(tokenizer)
        path = self.write("a.txt", "1 2 2 1")
        data = self.make(path, "--no-pack")
        self.assertEqual(data["tokens"][0][: data["length"][0]].tolist(), [0, 2, 3, 3, 2, 1])

    def test_settings_ask_for_an_end_token(self):
        self.use(byte_bpe(), settings={"eos_token": END, "add_eos_token": True})
        data = self.make(self.write("a.txt", "a b"), "--no-pack")
        self.assertEqual(
            data["tokens"][0][data["length"][0] - 1], self.tokenizer.token_to_id(END)
        )

    def test_what_goes_around_is_in_the_vocabulary(self):
        tokenizer = byte_bpe()
        tokenizer.add_special_tokens(["<|late|>"])
        self.use(tokenizer)
        late = tokenizer.token_to_id("<|late|>")
        path = self.write("a.txt", "a b c")
        self.assert_stops(
            65,
            f"beyond the vocabulary of {late}",
            arguments=[path, "--eos", "<|late|>", "--vocab-size", late],
        )

    def test_rows_longer_than_the_model_get_a_note(self):
        path = self.write("a.txt", "\n".join(CORPUS))
        for config, settings, name in (
            ({"max_position_embeddings": 4}, None, "max_position_embeddings"),
            ({}, {"model_max_length": 4}, "model_max_length"),
        ):
            self.use(byte_bpe(), config=config, settings=settings or {})
            code, _, errors = self.run_main(path, "--force")
            self.assertEqual(code, 0)
            self.assertEqual(errors.count("\n"), 1)
            for word in ("note", "8 tokens", "4", name):
                self.assertIn(word, errors)
        self.use(byte_bpe(), config={"max_position_embeddings": 8}, settings={})
        self.make(path, "--force")


if __name__ == "__main__":
    unittest.main()
