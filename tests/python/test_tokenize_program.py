"""Errors and command line of launch/tokenize.py; run as test_tokenize.py."""

import errno
import importlib.util
import json
import os
import pathlib
import pty
import resource
import shlex
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import CORPUS, SCRIPT, Case, tokenize

from espalier_tokens import arguments as command_line  # noqa: E402


class Errors(Case):
    def setUp(self):
        super().setUp()
        self.good = self.write(
            "good.jsonl", [{"text": t, "question": "q", "answer": "a"} for t in CORPUS]
        )

    def test_usage(self):
        for arguments, word in (
            ([], "INPUT"),
            ([self.good, "--wrong"], "--wrong"),
            ([self.good, "--max-sequences", "0"], "at least 1"),
            ([self.good, "--loss-on", "answer"], "--template"),
            (
                [self.good, "--template", "{question}", "--loss-on", "answer"],
                "its fields are: question",
            ),
            ([self.good, "--template", "{question"], "the template"),
            ([self.good, "--template", "{0.x}"], "plain field name"),
            ([self.good, "--template", "{}"], "plain field name"),
            ([self.good, "--template", "nothing"], "has no field"),
            ([self.good, "--template", "{answer}", "--loss-on", "answer", "--pack"], "exclude"),
            ([self.good, "--no-pack", "--keep-rest"], "--keep-rest"),
            ([self.good, "--overlong", "keep"], "overlong"),
        ):
            with self.subTest(arguments=arguments):
                self.assert_stops(64, word, arguments=arguments)
        self.assert_stops(64, "too short", arguments=[self.good], tokens=1)

    def test_bad_content(self):
        for name, content, words in (
            ("broken.jsonl", b'{"text": "a"}\n\n{"text": \n', ["broken.jsonl:3", "no JSON"]),
            ("array.jsonl", b"[1, 2]\n", ["array.jsonl:1", "an array"]),
            ("other.jsonl", b'{"body": "a"}\n', ["no field 'text'", "the line has: body"]),
            ("number.jsonl", b'{"text": null}\n', ["number.jsonl:1", "null"]),
            ("flag.jsonl", b'{"text": true}\n', ["flag.jsonl:1", "true"]),
            ("half.jsonl", b'{"text": "\\ud800"}\n', ["surrogate"]),
            ("deep.jsonl", b"[" * 100000 + b"\n", ["no JSON"]),
            ("latin.txt", "stra\u00dfe".encode("latin-1"), ["latin.txt", "0xdf", "offset 4"]),
            ("latin.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', ["latin.jsonl:2", "0xe9"]),
            ("short.txt", b"a", ["a row needs 8", "--keep-rest"]),
            ("empty.txt", b"", ["0 tokens"]),
            ("list.json", b"[]", ["0 tokens", "list.json (empty)"]),
            ("packed.txt.gz", b"x", ["packed.txt.gz", "damaged"]),
        ):
            with self.subTest(name=name):
                self.assert_stops(65, *words, arguments=[self.write(name, content)])

    def test_bad_content_late_leaves_nothing(self):
        lines = "".join(json.dumps({"text": t}) + "\n" for t in CORPUS * 300) + "{broken\n"
        path = self.write("late.jsonl", lines)
        self.assert_stops(65, f"late.jsonl:{len(CORPUS) * 300 + 1}", arguments=[path])

    def test_template_field_missing(self):
        self.assert_stops(
            65, "good.jsonl:1", "no field 'reply'", arguments=[self.good, "--template", "{reply}"]
        )
        self.assert_stops(
            64, ".jsonl", arguments=[self.write("a.txt", "text"), "--template", "{text}"]
        )

    def test_missing_input(self):
        self.assert_stops(66, "nowhere.txt", arguments=[self.dir / "nowhere.txt"])
        (self.dir / "void").mkdir()
        self.assert_stops(66, "no input in the directory", arguments=[self.dir / "void"])

    def test_tokenizer(self):
        (self.dir / "model" / "tokenizer.json").write_text("{}")
        self.assert_stops(65, "is no tokenizer", arguments=[self.good])
        (self.dir / "model" / "tokenizer.json").write_text("not json")
        self.assert_stops(65, "is no tokenizer", arguments=[self.good])
        (self.dir / "model" / "tokenizer.json").unlink()
        self.assert_stops(66, "tokenizer.json", arguments=[self.good])

    def test_output(self):
        self.out.write_bytes(b"mine")
        self.assert_stops(73, "exists", "--force", arguments=[self.good])
        self.assertEqual(self.out.read_bytes(), b"mine")
        self.assert_stops(
            73, "does not exist", "mkdir -p", arguments=[self.good], out=self.dir / "no" / "out.h5"
        )
        self.assert_stops(73, arguments=[self.good, "--force"], out=self.dir)
        self.make(self.good, "--force")
        self.assertEqual([p.name for p in self.dir.iterdir() if "tmp" in p.name], [])

    def test_failed_force_keeps_the_old_file(self):
        self.out.write_bytes(b"mine")
        self.assert_stops(65, arguments=[self.write("bad.jsonl", b"{"), "--force"])
        self.assertEqual(self.out.read_bytes(), b"mine")

    def test_no_permission(self):
        with mock.patch.object(tokenize.os, "access", return_value=False):
            self.assert_stops(77, "may not be written to", arguments=[self.good])
        real = open

        def refusing(path, *rest, **keys):
            if str(path) == self.good:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, *rest, **keys)

        with mock.patch("builtins.open", refusing):
            self.assert_stops(77, "cannot read", "good.jsonl", arguments=[self.good])
        folder = pathlib.Path(self.write("d/a.json", '[{"text": "a"}]')).parent
        self.good = str(folder / "a.json")
        with mock.patch("builtins.open", refusing):
            self.assert_stops(77, "cannot read", "d/a.json", arguments=[folder])

    def test_full_disk(self):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        for name in ("flush", "finish"):
            with self.subTest(name=name), mock.patch.object(tokenize.output.TokenFile, name, full):
                self.assert_stops(74, "No space left", arguments=[self.good])
        with mock.patch.object(tokenize.os, "replace", full):
            self.assert_stops(74, "No space left", arguments=[self.good])


class Program(Case):
    """The script as users start it."""

    def start(self, *arguments, **keys):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            **keys,
        )

    def common(self):
        return ["--tokenizer", self.dir / "model", "--out", self.out, "--sequence-tokens", 8]

    def test_from_its_own_directory(self):
        """Its name is that of a standard module: it must not shadow it."""
        path = self.write("a.txt", "\n".join(CORPUS))
        done = self.start(*self.common(), path, cwd=SCRIPT.parent)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"rows of 8, [\d,]+ tokens, .*tokens/s\n$")
        self.assertEqual(done.stdout.count("\n"), 1)

    def test_standard_module_of_its_name_stays_reachable(self):
        spec = importlib.util.spec_from_file_location("again", SCRIPT)
        with mock.patch.object(sys, "path", [str(SCRIPT.parent), *sys.path]):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
            found = importlib.util.find_spec("tokenize") if "tokenize" not in sys.modules else None
            self.assertNotIn(str(SCRIPT.parent), sys.path)
        self.assertNotEqual(getattr(found, "origin", ""), str(SCRIPT))

    def test_imports_nothing_more(self):
        code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("t", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
code = module.main(sys.argv[2:])
heavy = {"torch", "transformers", "safetensors"} & set(sys.modules)
sys.exit(code or (f"imported {heavy}" if heavy else 0))
"""
        path = self.write("a.txt", "\n".join(CORPUS))
        command = [sys.executable, "-c", code, str(SCRIPT), *map(str, self.common()), path]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_file_size_limit(self):
        """A real failure of write(2): one message, 74, no crash of libhdf5 behind it."""
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS * 400])

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))

        done = self.start(*self.common(), path, preexec_fn=limit)
        self.assertEqual((done.returncode, done.stdout), (74, ""), done.stderr)
        self.assertIn("File too large", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 3)
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"a.jsonl", "model"})

    def test_termination_leaves_nothing(self):
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS * 20000])
        command = [sys.executable, str(SCRIPT), *map(str, self.common()), path]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        while process.poll() is None and not any("tmp" in p.name for p in self.dir.iterdir()):
            time.sleep(0.005)
        process.terminate()
        printed, errors = process.communicate(timeout=120)
        self.assertEqual((process.returncode, printed), (143, b""), errors)
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"a.jsonl", "model"})

    def test_help_and_codes(self):
        done = self.start("--help")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.split("examples:")[1].count("launch/tokenize.py --tokenizer"), 6)
        done = self.start()
        self.assertEqual((done.returncode, done.stdout), (64, ""))

    def test_examples_of_the_help_parse(self):
        for line in command_line.EXAMPLES.replace("\\\n", " ").splitlines():
            if line.strip().startswith("launch/tokenize.py"):
                command_line.settle(command_line.make_parser().parse_args(shlex.split(line)[1:]))

    def test_bar_only_on_a_terminal(self):
        path = self.write("a.jsonl", [{"text": t} for t in CORPUS * 400])
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, self.common()), path],
            stderr=theirs,
            stdout=subprocess.PIPE,
        )
        printed = process.communicate(timeout=120)[0].decode()
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # Linux: the other end is closed
            pass
        os.close(ours)
        self.assertIn(b"tokenizing [", seen)
        self.assertTrue(seen.endswith(b"\r\x1b[K"))
        self.assertNotIn("tokenizing", printed)


if __name__ == "__main__":
    unittest.main()
