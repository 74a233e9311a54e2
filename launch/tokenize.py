#!/usr/bin/env python3
"""Turns text into the token files that espalier reads (HDF5; docs/file-formats.md).

Streams: documents are read, encoded and written in batches; nothing but an index of where each
document begins is held for the whole input. The output appears under its name only when complete.
"""

import os
import sys

# This file bears the name of a module of the standard library, which numpy and others import:
# our own folder must not be the first place where Python looks.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _HERE]

import argparse  # noqa: E402
import array  # noqa: E402
import errno  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import string  # noqa: E402
import time  # noqa: E402

USAGE, BAD_CONTENT, NO_INPUT, UNAVAILABLE, CANNOT_CREATE, WRITE_FAILED, NO_PERMISSION = 64, 65, 66, 69, 73, 74, 77

TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .py .c .h .cc .cpp .cxx .hpp .cu .cuh .f .f90 .java .js .ts .go .rs .rb .jl .r .sh .sql "
    ".yaml .yml .toml .html .xml .css .csv .tsv .log".split())
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson"))
DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
PIECE_BYTES = 1 << 22      # longer plain documents are encoded in pieces cut at line ends
BATCH_BYTES = 1 << 20      # text encoded in one call of the tokenizer
BATCH_DOCUMENTS = 512
BLOCK_TOKENS = 1 << 18     # tokens handed to HDF5 at once

EXAMPLES = """\
examples:
  # plain text, packed into full rows of 2048 tokens
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 2048 --out data/web.h5 corpus/

  # questions with answers, one a row; only the answer's tokens count in the loss
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 512 --out data/math.h5 \\
      --template "{question}\\n{answer}" --loss-on answer --max-sequences 1000 --seed 1 train.jsonl
"""


class Stop(Exception):
    """Ends the program with one message: what happened, why, what to do, and the exit code."""

    def __init__(self, code, what, why, do):
        super().__init__(what)
        self.code, self.what, self.why, self.do = code, what, why, do

    def block(self):
        return f"tokenize: stopped: {self.what} (exit {self.code})\n  why  {self.why}\n  do   {self.do}"


def stop_of(error, path, writing=False):
    """The Stop that an OSError on `path` means."""
    why = f"{path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Stop(NO_PERMISSION, f"cannot {'write' if writing else 'read'} '{path}'", why,
                    "ask for the permission or choose another path")
    if writing:
        return Stop(WRITE_FAILED, f"writing '{path}' failed", why,
                    "free space or choose another place with --out, then run the same command again")
    return Stop(NO_INPUT, f"cannot read '{path}'", why, "check the path")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Stop(USAGE, "the command line is wrong", message, "see launch/tokenize.py --help")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} (it must be at least 1)")
    return value


def make_parser():
    parser = Parser(prog="launch/tokenize.py", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES, allow_abbrev=False)
    parser.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="text files, .jsonl files, or directories (searched through, in the order of names)")
    parser.add_argument("--tokenizer", required=True, metavar="PATH",
                        help="a tokenizer.json, or a model directory that has one")
    parser.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    parser.add_argument("--sequence-tokens", required=True, type=positive, metavar="S", help="tokens of a row")
    parser.add_argument("--field", default="text", help="field of a jsonl line that holds its text (default: text)")
    parser.add_argument("--template", metavar="TEXT",
                        help=r'text of a jsonl line from its fields, e.g. "{question}\n{answer}"; \n, \t and \\ are '
                             "understood, {{ and }} are braces. One sequence a row")
    parser.add_argument("--loss-on", metavar="FIELD", action="append", default=[],
                        help="only the tokens of this field of the template count in the loss (may be repeated)")
    parser.add_argument("--pack", action=argparse.BooleanOptionalAction, default=None,
                        help="fill rows with one document after another (default without --template), "
                             "or give each document a row of its own")
    parser.add_argument("--keep-rest", action="store_true",
                        help="packing: keep the last, unfilled row (it gets a length); otherwise it is dropped")
    parser.add_argument("--overlong", choices=("drop", "truncate"), default="drop",
                        help="one document a row: what happens to those longer than S (default: drop)")
    parser.add_argument("--bos", default="auto", metavar="auto|none|TOKEN",
                        help="before each document; auto: what the tokenizer itself puts there")
    parser.add_argument("--eos", default="auto", metavar="auto|none|TOKEN",
                        help="behind each document; auto: packing: the end-of-document token, "
                             "else what the tokenizer itself puts there")
    parser.add_argument("--max-sequences", type=positive, metavar="N", help="stop after N rows")
    parser.add_argument("--seed", type=int, metavar="K", help="shuffle the documents (default: keep their order)")
    parser.add_argument("--vocab-size", type=positive, metavar="V",
                        help="vocabulary of the model (default: from config.json beside the tokenizer, "
                             "else the tokenizer's own)")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return parser


# ----------------------------------------------------------------------------------- command line

def unescape(template):
    """\\n, \\t and \\\\ of a template that a shell passed as it stood."""
    out, i = [], 0
    while i < len(template):
        two = template[i:i + 2]
        if two in ("\\n", "\\t", "\\\\"):
            out.append({"n": "\n", "t": "\t", "\\": "\\"}[two[1]])
            i += 2
        else:
            out.append(template[i])
            i += 1
    return "".join(out)


def parse_template(template, loss_on):
    """[(literal, field or None)] of a template; checks its fields against --loss-on."""
    try:
        parts = [(literal, field, spec, conversion) for literal, field, spec, conversion
                 in string.Formatter().parse(unescape(template))]
    except ValueError as error:
        raise Stop(USAGE, f"the template {template!r} is wrong", str(error), "write fields as {name}, braces as {{ and }}")
    for _, field, spec, conversion in parts:
        if field is not None and (not field or spec or conversion or not field.replace("_", "a").isalnum()):
            raise Stop(USAGE, f"the template {template!r} is wrong", f"'{field}' is no plain field name",
                       "write fields as {name}, braces as {{ and }}")
    fields = [field for _, field, _, _ in parts if field is not None]
    for wanted in loss_on:
        if wanted not in fields:
            raise Stop(USAGE, f"--loss-on {wanted} names no field of the template", f"its fields are: {', '.join(fields) or 'none'}",
                       "name one of them")
    if not fields:
        raise Stop(USAGE, f"the template {template!r} has no field", "every row would be the same", "name a field as {name}")
    return [(literal, field) for literal, field, _, _ in parts]


def settle(args):
    """Checks what flags mean together and fills in what depends on others."""
    if args.loss_on and not args.template:
        raise Stop(USAGE, "--loss-on needs --template", "without a template a document has no fields",
                   'add for example --template "{question}\\n{answer}"')
    if args.loss_on and args.pack:
        raise Stop(USAGE, "--pack and --loss-on exclude one another", "a row with a loss mask holds one sequence", "drop one of the two")
    args.parts = parse_template(args.template, args.loss_on) if args.template else None
    args.pack = args.pack if args.pack is not None else args.template is None
    if args.keep_rest and not args.pack:
        raise Stop(USAGE, "--keep-rest needs packing", "with one document a row there is no rest", "drop --keep-rest")
    if args.sequence_tokens < 2:
        raise Stop(USAGE, "--sequence-tokens 1 is too short", "the first token of a row is never predicted", "use at least 2")
    return args


# -------------------------------------------------------------------------------------- tokenizer

class Coder:
    """A tokenizer with what goes before and behind a document.

    The post-processor is taken out and applied by ourselves: some of them trim the offsets of
    white space, which the loss mask needs as it is.
    """

    def __init__(self, path, bos, eos, packed, vocab_size):
        from tokenizers import Tokenizer

        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        raw = read_bytes(file, "write tokenizer.json with AutoTokenizer.from_pretrained(...).save_pretrained(...) if the "
                               "model only has another form")
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.folder = os.path.dirname(file)
        try:
            data = json.loads(raw)
            full = Tokenizer.from_str(json.dumps(data))
            data["post_processor"] = None
            self.plain = Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exception
            raise Stop(BAD_CONTENT, f"'{file}' is no tokenizer", str(error).splitlines()[0],
                       "give the tokenizer.json of the model")
        self.plain.no_truncation()
        self.plain.no_padding()
        self.settings = self._json("tokenizer_config.json")
        self.prefix, self.suffix = self._around(full)
        self.prefix = self._chosen(bos, "--bos", self.prefix, self._default_bos())
        self.suffix = self._chosen(eos, "--eos", self.suffix, self._document_token() if packed else None)
        ids = self.plain.get_vocab(with_added_tokens=True).values()
        self.vocab_size = vocab_size or self._model_vocabulary() or max(ids) + 1
        self.padding = next((i for i in (*self.suffix, self._document_token(), 0) if i is not None and i < self.vocab_size), 0)

    def _json(self, name):
        """A JSON object beside the tokenizer, or {} where there is none that can be read."""
        try:
            with open(os.path.join(self.folder, name), encoding="utf-8") as file:
                value = json.load(file)
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _around(self, full):
        """Ids that the tokenizer's own post-processor puts before and behind a text."""
        encoding = full.encode("a", add_special_tokens=True)
        special = encoding.special_tokens_mask
        inner = [i for i, s in enumerate(special) if not s] or [0]
        return list(encoding.ids[:inner[0]]), list(encoding.ids[inner[-1] + 1:])

    def _named(self, key):
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return self.plain.token_to_id(value) if isinstance(value, str) else None

    def _default_bos(self):
        return self._named("bos_token") if self.settings.get("add_bos_token") is True else None

    def _document_token(self):
        """The token that ends a document of plain text: a chat model's eos_token ends a turn instead."""
        for name in DOCUMENT_TOKENS:
            if self.plain.token_to_id(name) is not None:
                return self.plain.token_to_id(name)
        return self._named("eos_token")

    def _chosen(self, wanted, flag, own, fallback):
        if wanted == "none":
            return []
        if wanted == "auto":
            return own or ([fallback] if fallback is not None else [])
        number = self.plain.token_to_id(wanted)
        if number is None:
            raise Stop(USAGE, f"{flag} {wanted}: the tokenizer has no such token", "it must be auto, none or a token of the vocabulary",
                       "write the token as the tokenizer does")
        return [number]

    def _model_vocabulary(self):
        size = self._json("config.json").get("vocab_size")
        return size if isinstance(size, int) and size > 0 else None

    def encode(self, texts, offsets):
        """Encodings of texts, without what goes around them; `offsets` only where they are read."""
        if not offsets and hasattr(self.plain, "encode_batch_fast"):
            return self.plain.encode_batch_fast(texts, add_special_tokens=False)
        return self.plain.encode_batch(texts, add_special_tokens=False)


def read_bytes(path, remedy):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        stop = stop_of(error, path)
        stop.do = remedy if stop.code == NO_INPUT else stop.do
        raise stop


# ------------------------------------------------------------------------------------------ input

class Source:
    """One input file: its hash and where its documents lie."""

    def __init__(self, path):
        self.path, self.lines = path, os.path.splitext(path)[1].lower() in LINE_SUFFIXES
        self.starts, self.sizes, self.numbers = array.array("Q"), array.array("Q"), array.array("Q")
        self.bytes, self.sha256 = 0, ""

    def index(self):
        """Reads the file once: hash, and begin and size of every document."""
        digest = hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                blocks = file if self.lines else iter(lambda: file.read(1 << 20), b"")
                for number, block in enumerate(blocks, 1):
                    digest.update(block)
                    if self.lines and block.strip():
                        self._add(self.bytes, len(block), number)
                    self.bytes += len(block)
        except OSError as error:
            raise stop_of(error, self.path)
        if not self.lines and self.bytes:
            self._add(0, self.bytes, 1)
        self.sha256 = digest.hexdigest()

    def _add(self, start, size, number):
        self.starts.append(start)
        self.sizes.append(size)
        self.numbers.append(number)


def find_sources(inputs, template):
    """Input files in the order given; directories are walked in the order of names."""
    found = []
    for path in inputs:
        if os.path.isdir(path):
            before = len(found)
            for folder, folders, files in os.walk(path, onerror=lambda error: (_ for _ in ()).throw(stop_of(error, error.filename))):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(files):
                    suffix = os.path.splitext(name)[1].lower()
                    if not name.startswith(".") and (suffix in LINE_SUFFIXES or (suffix in TEXT_SUFFIXES and not template)):
                        found.append(Source(os.path.join(folder, name)))
            if len(found) == before:
                raise Stop(NO_INPUT, f"no input in the directory '{path}'",
                           "it has no .jsonl file" if template else "it has no text or .jsonl file",
                           "name the files themselves, or another directory")
            continue
        if not os.path.exists(path):
            raise Stop(NO_INPUT, f"cannot read '{path}'", "there is no such file or directory", "check the path")
        suffix = os.path.splitext(path)[1].lower()
        if suffix in (".json", ".gz", ".zst", ".xz", ".parquet", ".h5", ".arrow", ".zip"):
            raise Stop(BAD_CONTENT, f"'{path}' is neither text nor jsonl", f"files that end in {suffix} are not read",
                       "convert it to jsonl: one JSON object a line")
        if template and suffix not in LINE_SUFFIXES:
            raise Stop(USAGE, f"a template cannot be filled from '{path}'", "its fields come from the lines of .jsonl files",
                       "give a .jsonl file or drop --template")
        found.append(Source(path))
    for source in found:
        source.index()
    return found


class Reader:
    """Documents by number, over all sources; keeps one file open."""

    def __init__(self, sources, args):
        self.sources, self.args, self.file, self.opened = sources, args, None, None
        self.count = sum(len(s.starts) for s in sources)
        self.bytes = sum(sum(s.sizes) for s in sources)

    def order(self):
        """(source, document) pairs in the order of work."""
        pairs = ((s, d) for s, source in enumerate(self.sources) for d in range(len(source.starts)))
        if self.args.seed is None:
            return pairs
        pairs = list(pairs)
        random.Random(self.args.seed).shuffle(pairs)
        return pairs

    def read(self, source_index, document):
        """(text, [(begin, end)] of the fields that count in the loss, bytes) of one document."""
        source = self.sources[source_index]
        size = source.sizes[document]
        try:
            if self.opened != source_index:
                self.close()
                self.file, self.opened = open(source.path, "rb"), source_index
            self.file.seek(source.starts[document])
            raw = self.file.read(size)
        except OSError as error:
            raise stop_of(error, source.path)
        if len(raw) != size:
            raise Stop(BAD_CONTENT, f"'{source.path}' changed while it was read", f"{size} bytes were expected, {len(raw)} came",
                       "run again when nothing writes to it")
        place = f"{source.path}:{source.numbers[document]}" if source.lines else source.path
        text = decode(raw, place)
        if not source.lines:
            return text, [], size
        return (*self._of_line(text, place), size)

    def _of_line(self, line, place):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Stop(BAD_CONTENT, f"{place}: the line is no JSON", str(error), "write one JSON object a line")
        if not isinstance(record, dict):
            raise Stop(BAD_CONTENT, f"{place}: the line is no JSON object", f"it is a {type(record).__name__}",
                       'write lines like {"text": "..."}')
        if self.args.parts is None:
            return value_of(record, self.args.field, place), []
        text, spans = "", []
        for literal, field in self.args.parts:
            text += literal
            if field is not None:
                begin = len(text)
                text += value_of(record, field, place)
                if field in self.args.loss_on:
                    spans.append((begin, len(text)))
        return text, spans

    def close(self):
        if self.file is not None:
            self.file.close()


def decode(raw, place):
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Stop(BAD_CONTENT, f"{place}: not UTF-8", f"byte 0x{raw[error.start]:02x} at offset {error.start} of the document",
                   "convert it (iconv -t utf-8) or take it out of the input")
    return text[1:] if text.startswith("\ufeff") else text


def value_of(record, field, place):
    if field not in record:
        raise Stop(BAD_CONTENT, f"{place}: no field '{field}'", f"the line has: {', '.join(record) or 'nothing'}",
                   "name the right field with --field or --template")
    value = record[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Stop(BAD_CONTENT, f"{place}: field '{field}' is no text", f"it is a {type(value).__name__}", "give text or a number")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Stop(BAD_CONTENT, f"{place}: field '{field}' holds half a surrogate pair", "it cannot be written as UTF-8",
                   "repair the line")
    return value


# ----------------------------------------------------------------------------------------- output

class TokenFile:
    """The HDF5 file while it grows: a temporary neighbour of `path`, renamed when complete."""

    def __init__(self, path, width, lengths, masks):
        import h5py
        import numpy

        self.np, self.path, self.width = numpy, path, width
        self.temporary = os.path.join(os.path.dirname(path) or ".", f".{os.path.basename(path)}.tmp-{os.getpid()}")
        self.rows, self.waiting = 0, []
        try:
            self.file = h5py.File(self.temporary, "w-")
        except OSError as error:
            raise Stop(NO_PERMISSION if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else CANNOT_CREATE,
                       f"cannot create '{path}'", os.strerror(error.errno) if error.errno else str(error),
                       "check that the directory may be written to, or choose another path with --out")
        rows = max(1, min(4096, BLOCK_TOKENS // width))
        self.block = rows
        self.tokens = self._dataset("tokens", (width,), "<i4", rows)
        self.lengths = self._dataset("length", (), "<i4", 4096) if lengths else None
        self.masks = self._dataset("loss_mask", (width,), "u1", rows) if masks else None

    def _dataset(self, name, row, dtype, rows):
        return self.file.create_dataset(name, (0, *row), dtype=dtype, maxshape=(None, *row), chunks=(rows, *row))

    def add(self, ids, length, mask=None):
        self.waiting.append((ids, length, mask))
        self.rows += 1
        if len(self.waiting) >= self.block:
            self.flush()

    def flush(self):
        if not self.waiting:
            return
        begin = self.rows - len(self.waiting)
        ids, lengths, masks = zip(*self.waiting)
        for dataset, values in ((self.tokens, ids), (self.lengths, lengths), (self.masks, masks)):
            if dataset is not None:
                dataset.resize(self.rows, axis=0)
                dataset[begin:] = self.np.asarray(values, dtype=dataset.dtype)
        self.waiting = []

    def finish(self, attributes):
        self.flush()
        for name, value in attributes.items():
            self.file.attrs[name] = value if isinstance(value, str) else self.np.int64(value)
        self.file.close()
        for place in (self.temporary, os.path.dirname(self.path) or "."):
            if place != self.temporary:
                os.replace(self.temporary, self.path)
            number = os.open(place, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def discard(self):
        """Leaves nothing behind, whatever state the file is in."""
        try:
            self.file.close()
        except Exception:  # the disk may be full: libhdf5 then fails to flush
            pass
        try:
            os.unlink(self.temporary)
        except OSError:
            pass


class Progress:
    """A bar on a terminal; silent in log files."""

    def __init__(self, total, quiet):
        self.total, self.shown = max(1, total), 0.0
        self.active = not quiet and sys.stderr.isatty()
        self.begin = time.monotonic()

    def show(self, done, rows):
        now = time.monotonic()
        if not self.active or now - self.shown < 0.1:
            return
        self.shown, part = now, min(1.0, done / self.total)
        eta = (now - self.begin) * (1 - part) / part if part > 0 else 0
        bar = ("#" * round(24 * part)).ljust(24)
        sys.stderr.write(f"\r\x1b[Ktokenizing [{bar}] {100 * part:3.0f} %  {done / 1e6:.1f}/{self.total / 1e6:.1f} MB  "
                         f"{rows:,} rows  eta {eta:.0f} s")
        sys.stderr.flush()

    def clear(self):
        if self.active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# ------------------------------------------------------------------------------------------- rows

class Counts:
    def __init__(self):
        self.documents = self.empty = self.overlong = self.truncated = self.unlearned = 0
        self.rest = self.tokens = self.counted = 0


def pieces_of(text):
    """A long text in pieces cut behind line ends, where tokenizers cut as well; a short one whole."""
    begin = 0
    while len(text) - begin > PIECE_BYTES:
        end = text.rfind("\n", begin, begin + PIECE_BYTES) + 1
        while 0 < end < len(text) and text[end].isspace():  # a run of white space stays in one piece
            end += 1
        if end <= begin:
            end = begin + PIECE_BYTES
        yield text[begin:end]
        begin = end
    yield text[begin:]


def batches(reader, counts):
    """Documents in batches worth one call of the tokenizer: ([(text, spans)], bytes done so far)."""
    batch, size, done = [], 0, 0
    for source, document in reader.order():
        text, spans, bytes_ = reader.read(source, document)
        counts.documents += 1
        done += bytes_
        if not text:
            counts.empty += 1
            continue
        batch.append((text, spans))
        size += bytes_
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield batch, done
            batch, size = [], 0
    if batch:
        yield batch, done


def check_ids(ids, coder, text):
    top = max(ids, default=0)
    if top >= coder.vocab_size:
        raise Stop(BAD_CONTENT, f"token {top} ({coder.plain.id_to_token(top)!r}) is beyond the vocabulary of {coder.vocab_size}",
                   f"it occurs in a document that begins with {text[:40]!r}",
                   "use the tokenizer that belongs to the model, or give the model's --vocab-size")


def pack(batch, coder, width, carry):
    """Appends the documents to `carry` and yields every full row."""
    texts, last = [], []
    for text, _ in batch:
        cut = list(pieces_of(text))
        texts += cut
        last += [False] * (len(cut) - 1) + [True]
    fresh = True
    for piece, ends, encoding in zip(texts, last, coder.encode(texts, offsets=False)):
        check_ids(encoding.ids, coder, piece)
        carry += (coder.prefix if fresh else []) + encoding.ids + (coder.suffix if ends else [])
        fresh = ends
        full = len(carry) // width * width
        for begin in range(0, full, width):
            yield carry[begin:begin + width]
        del carry[:full]


def separate(batch, coder, args, counts):
    """(ids, length, mask) of the documents, each padded to a row of its own."""
    width = args.sequence_tokens
    encodings = coder.encode([text for text, _ in batch], offsets=bool(args.loss_on))
    for (text, spans), encoding in zip(batch, encodings):
        check_ids(encoding.ids, coder, text)
        ids = coder.prefix + encoding.ids + coder.suffix
        mask = None
        if args.loss_on:
            mask = [0] * len(coder.prefix) + answer_mask(encoding.offsets, spans) + [0] * len(coder.suffix)
            mask[0] = 0  # nothing comes before the first token: it is never predicted
        if len(ids) > width and args.overlong == "drop":
            counts.overlong += 1
            continue
        length = min(len(ids), width)
        if length < 2 or (mask is not None and not any(mask[:width])):
            counts.unlearned += 1
            continue
        counts.truncated += len(ids) > width
        counts.counted += sum(mask[:width]) if mask is not None else length - 1
        space = width - length
        yield ids[:width] + [coder.padding] * space, length, None if mask is None else mask[:width] + [0] * space


def answer_mask(offsets, spans):
    """1 for each token that holds at least one character of a span.

    A merge may reach over the border of the answer: such a token cannot be predicted without
    predicting the answer's first characters, so it counts.
    """
    return [int(any(begin < stop and start < end for start, stop in spans)) for begin, end in offsets]


def write_rows(reader, coder, out, args, counts, progress):
    """All rows of the input, at most --max-sequences."""
    limit = args.max_sequences or sys.maxsize
    carry, width = [], args.sequence_tokens
    for batch, done in batches(reader, counts):
        rows = (((ids, width, None) for ids in pack(batch, coder, width, carry)) if args.pack
                else separate(batch, coder, args, counts))
        for ids, length, mask in rows:
            out.add(ids, length, mask)
            counts.tokens += length
            if out.rows == limit:
                return
        progress.show(done, out.rows)
    if args.keep_rest and len(carry) > 1:
        out.add(carry + [coder.padding] * (width - len(carry)), len(carry))
        counts.tokens += len(carry)
    else:
        counts.rest = len(carry)


def source_digest(sources):
    """The file's SHA-256; of several files that over their hashes in order, as lines of hex digits."""
    if len(sources) == 1:
        return sources[0].sha256
    return hashlib.sha256("".join(f"{s.sha256}\n" for s in sources).encode()).hexdigest()


def no_rows(args, counts):
    if args.pack:
        return Stop(BAD_CONTENT, "no row was written", f"the input has {counts.rest} tokens, a row needs {args.sequence_tokens}",
                    "use a smaller --sequence-tokens, more input, or --keep-rest")
    return Stop(BAD_CONTENT, "no row was written",
                f"of {counts.documents} documents {counts.overlong} were longer than {args.sequence_tokens} tokens, "
                f"{counts.empty} empty, {counts.unlearned} without a token to predict",
                "use a larger --sequence-tokens, --overlong truncate, or other input")


def summary(args, out, counts, seconds):
    parts = [f"{out.rows:,} rows of {args.sequence_tokens}, {counts.tokens:,} tokens"]
    if args.loss_on:
        parts.append(f"{counts.counted:,} count in the loss")
    parts.append(f"{counts.documents:,} documents")
    for number, words in ((counts.overlong, "overlong dropped"), (counts.truncated, "truncated"), (counts.empty, "empty skipped"),
                          (counts.unlearned, "without a token to predict skipped"), (counts.rest, "tokens of rest dropped")):
        if number:
            parts.append(f"{number:,} {words}")
    return f"{args.out}: {', '.join(parts)}; {seconds:.1f} s, {counts.tokens / max(seconds, 1e-9):,.0f} tokens/s"


def check_output(args):
    folder = os.path.dirname(args.out) or "."
    if os.path.isdir(args.out) or (os.path.lexists(args.out) and not args.force):
        raise Stop(CANNOT_CREATE, f"'{args.out}' exists", "a token file is not replaced unasked",
                   "choose another path with --out, or give --force")
    if not os.path.isdir(folder):
        raise Stop(CANNOT_CREATE, f"cannot create '{args.out}'", f"the directory '{folder}' does not exist", f"mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Stop(NO_PERMISSION, f"cannot create '{args.out}'", f"the directory '{folder}' may not be written to", "choose another place with --out")


def run(argv):
    begin = time.monotonic()
    args = settle(make_parser().parse_args(argv))
    check_output(args)
    try:
        import h5py  # noqa: F401
        import numpy  # noqa: F401
        import tokenizers
    except ImportError as error:
        raise Stop(UNAVAILABLE, "a Python package is missing", str(error), "run launch/setup.sh and use .venv/bin/python")
    coder = Coder(args.tokenizer, args.bos, args.eos, args.pack, args.vocab_size)
    sources = find_sources(args.inputs, args.template)
    reader, counts = Reader(sources, args), Counts()
    out = TokenFile(args.out, args.sequence_tokens, lengths=not args.pack or args.keep_rest, masks=bool(args.loss_on))
    progress = Progress(reader.bytes, args.quiet)
    try:
        write_rows(reader, coder, out, args, counts, progress)
        if out.rows == 0:
            raise no_rows(args, counts)
        out.finish({
            "format": "espalier-tokens", "version": 1, "vocab_size": coder.vocab_size, "tokenizer_sha256": coder.sha256,
            "source_sha256": source_digest(sources), "template": unescape(args.template) if args.template else "",
            "sources": json.dumps([{"path": s.path, "bytes": s.bytes, "sha256": s.sha256} for s in sources], ensure_ascii=False),
            "seed": -1 if args.seed is None else args.seed, "loss_on": ",".join(args.loss_on), "packed": int(args.pack),
            "tokenizers_version": tokenizers.__version__})
    except OSError as error:
        raise stop_of(error, args.out, writing=True)
    finally:
        progress.clear()
        reader.close()
        out.discard()
    if not args.quiet:
        print(summary(args, out, counts, time.monotonic() - begin))


def interrupted(number, _frame):
    raise KeyboardInterrupt(number)


def main(argv=None):
    signal.signal(signal.SIGTERM, interrupted)
    try:
        run(argv)
    except Stop as stop:
        print(stop.block(), file=sys.stderr)
        return stop.code
    except KeyboardInterrupt as interrupt:
        print("tokenize: interrupted, nothing was written", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
