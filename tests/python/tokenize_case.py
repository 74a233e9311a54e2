"""What the tests of launch/tokenize.py share: small tokenizers, and a directory to run in."""

import importlib.util
import io
import json
import pathlib
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout

import h5py
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "tokenize.py"
spec = importlib.util.spec_from_file_location("espalier_tokenize", SCRIPT)
tokenize = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tokenize)

END = "<|endoftext|>"
CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "two and two make four, four and four make eight",
    "fn add(a, b) {\n    return a + b;\n}\n",
    "the answer is 12. the question was 7 + 5?",
] * 4


def byte_bpe(vocab=320, crossing=False, trim=False):
    """A byte-level BPE; `crossing`: no borders between words, so merges run over spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not crossing
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    return tokenizer


def llama_like():
    """Byte-fallback pieces with a mark for spaces and a begin token, as Llama 2 has them."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    for piece in ("\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581a", "\u2581b"):
        pieces.setdefault(piece, len(pieces))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=[("\u2581", "a"), ("\u2581", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)
        self.out = self.dir / "out.h5"
        self.use(byte_bpe())

    def use(self, tokenizer, config=None, settings=None):
        folder = self.dir / "model"
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        for name, value in (("config.json", config), ("tokenizer_config.json", settings)):
            if value is not None:
                (folder / name).write_text(json.dumps(value))
        self.tokenizer = tokenizer

    def write(self, name, content):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(line) + "\n" for line in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def run_main(self, *arguments, tokens=8, out=None):
        """(exit code, stdout, stderr)"""
        stdout, stderr = io.StringIO(), io.StringIO()
        argv = [
            "--tokenizer",
            str(self.dir / "model"),
            "--out",
            str(out or self.out),
            "--sequence-tokens",
            str(tokens),
            *map(str, arguments),
        ]
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = tokenize.main(argv)
        return code, stdout.getvalue(), stderr.getvalue()

    def make(self, *arguments, tokens=8):
        """The written file as {dataset: array}, with its attributes under 'attributes'."""
        code, self.printed, errors = self.run_main(*arguments, tokens=tokens)
        self.assertEqual((code, errors), (0, ""))
        with h5py.File(self.out) as file:
            data = {name: file[name][()] for name in file}
            data["attributes"] = dict(file.attrs)
            self.types = {name: file[name].dtype for name in file}
        return data

    def assert_stops(self, code, *words, arguments=(), tokens=8, out=None):
        """One message with what, why, do; the code; nothing left behind."""
        before = {p for p in self.dir.rglob("*")}
        got, printed, errors = self.run_main(*arguments, tokens=tokens, out=out)
        self.assertEqual((got, printed), (code, ""), errors)
        self.assertEqual(errors.count("stopped:"), 1)
        self.assertRegex(
            errors, rf"(?s)^tokenize: stopped: .+ \(exit {code}\)\n  why  .+\n  do   .+\n$"
        )
        self.assertNotIn("Traceback", errors)
        for word in words:
            self.assertIn(word, errors)
        self.assertEqual({p for p in self.dir.rglob("*")}, before)
