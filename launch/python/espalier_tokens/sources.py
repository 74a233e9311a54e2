"""Input: files, where their documents lie, and the text of a document."""

import array
import codecs
import hashlib
import json
import os
import random
import string

from .stop import BAD_CONTENT, NO_INPUT, USAGE, Stop, stop_of

CHUNK_BYTES = 1 << 20  # of a document, read at once
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .py .c .h .cc .cpp .cxx .hpp .cu .cuh .f .f90 .java .js .ts .go .rs .rb "
    ".jl .r .sh .sql .yaml .yml .toml .html .xml .css .csv .tsv .log".split()
)
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson"))
OTHER_SUFFIXES = frozenset(".json .gz .zst .xz .bz2 .zip .parquet .arrow .h5 .hdf5".split())


def unescape(template):
    """\\n, \\t and \\\\ of a template that a shell passed as it stood."""
    out, i = [], 0
    while i < len(template):
        two = template[i : i + 2]
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
        parts = [
            (literal, field, spec, conversion)
            for literal, field, spec, conversion in string.Formatter().parse(unescape(template))
        ]
    except ValueError as error:
        raise Stop(
            USAGE,
            f"the template {template!r} is wrong",
            str(error),
            "write fields as {name}, braces as {{ and }}",
        )
    for _, field, spec, conversion in parts:
        if field is not None and (
            not field or spec or conversion or not field.replace("_", "a").isalnum()
        ):
            raise Stop(
                USAGE,
                f"the template {template!r} is wrong",
                f"'{field}' is no plain field name",
                "write fields as {name}, braces as {{ and }}",
            )
    fields = [field for _, field, _, _ in parts if field is not None]
    for wanted in loss_on:
        if wanted not in fields:
            raise Stop(
                USAGE,
                f"--loss-on {wanted} names no field of the template",
                f"its fields are: {', '.join(fields) or 'none'}",
                "name one of them",
            )
    if not fields:
        raise Stop(
            USAGE,
            f"the template {template!r} has no field",
            "every row would be the same",
            "name a field as {name}",
        )
    return [(literal, field) for literal, field, _, _ in parts]


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


def unreadable(error):
    """What os.walk calls for a directory it cannot list; it would pass over it in silence."""
    raise stop_of(error, error.filename)


def find_sources(inputs, template):
    """Input files in the order given; directories are walked in the order of names."""
    found = []
    for path in inputs:
        if os.path.isdir(path):
            before = len(found)
            for folder, folders, files in os.walk(path, onerror=unreadable):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(files):
                    suffix = os.path.splitext(name)[1].lower()
                    if not name.startswith(".") and (
                        suffix in LINE_SUFFIXES or (suffix in TEXT_SUFFIXES and not template)
                    ):
                        found.append(Source(os.path.join(folder, name)))
            if len(found) == before:
                raise Stop(
                    NO_INPUT,
                    f"no input in the directory '{path}'",
                    "it has no .jsonl file" if template else "it has no text or .jsonl file",
                    "name the files themselves, or another directory",
                )
            continue
        if not os.path.exists(path):
            raise Stop(
                NO_INPUT,
                f"cannot read '{path}'",
                "there is no such file or directory",
                "check the path",
            )
        suffix = os.path.splitext(path)[1].lower()
        if suffix in OTHER_SUFFIXES:
            raise Stop(
                BAD_CONTENT,
                f"'{path}' is neither text nor jsonl",
                f"files that end in {suffix} are not read",
                "convert it to jsonl: one JSON object a line",
            )
        if template and suffix not in LINE_SUFFIXES:
            raise Stop(
                USAGE,
                f"a template cannot be filled from '{path}'",
                "its fields come from the lines of .jsonl files",
                "give a .jsonl file or drop --template",
            )
        found.append(Source(path))
    for source in found:
        source.index()
    return found


class Reader:
    """Documents over all sources; keeps one file open and counts the bytes it has read."""

    def __init__(self, sources, args):
        self.sources, self.args, self.file, self.opened = sources, args, None, None
        self.bytes = sum(sum(s.sizes) for s in sources)
        self.done = 0

    def order(self):
        """(source, number of the document) in the order of work."""
        pairs = ((s, d) for s, source in enumerate(self.sources) for d in range(len(source.starts)))
        if self.args.seed is None:
            return pairs
        pairs = list(pairs)
        random.Random(self.args.seed).shuffle(pairs)
        return pairs

    def documents(self):
        """(chunks of text, [(begin, end)] of what counts in the loss) of each document in order."""
        for index, number in self.order():
            source = self.sources[index]
            if source.lines:
                line = "".join(self._chunks(index, number))
                text, spans = self._of_line(line, f"{source.path}:{source.numbers[number]}")
                yield (text,), spans
            else:
                yield self._chunks(index, number), []

    def _chunks(self, index, number):
        """The text of a document as it lies in the file, CHUNK_BYTES at a time."""
        source = self.sources[index]
        place = f"{source.path}:{source.numbers[number]}" if source.lines else source.path
        left, rest, offset = source.sizes[number], b"", 0
        while left:
            raw = rest + self._bytes(index, source.starts[number] + offset, min(left, CHUNK_BYTES))
            left -= len(raw) - len(rest)
            text, used = decode(raw, offset - len(rest), not left, place)
            offset += len(raw) - len(rest)
            rest = raw[used:]
            yield text

    def _bytes(self, index, start, count):
        source = self.sources[index]
        try:
            if self.opened != index:
                self.close()
                self.file, self.opened = open(source.path, "rb"), index
            self.file.seek(start)
            raw = self.file.read(count)
        except OSError as error:
            raise stop_of(error, source.path)
        if len(raw) != count:
            raise Stop(
                BAD_CONTENT,
                f"'{source.path}' changed while it was read",
                f"{count} bytes were expected at {start}, {len(raw)} came",
                "run again when nothing writes to it",
            )
        self.done += count
        return raw

    def _of_line(self, line, place):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Stop(
                BAD_CONTENT,
                f"{place}: the line is no JSON",
                str(error),
                "write one JSON object a line",
            )
        if not isinstance(record, dict):
            raise Stop(
                BAD_CONTENT,
                f"{place}: the line is no JSON object",
                f"it is a {type(record).__name__}",
                'write lines like {"text": "..."}',
            )
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


def decode(raw, offset, final, place):
    """(text, bytes used) of UTF-8 that begins `offset` bytes into a document."""
    try:
        text, used = codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        raise Stop(
            BAD_CONTENT,
            f"{place}: not UTF-8",
            f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} of the document",
            "convert it (iconv -t utf-8) or take it out of the input",
        )
    return (text[1:] if offset == 0 and text.startswith("\ufeff") else text), used


def value_of(record, field, place):
    if field not in record:
        raise Stop(
            BAD_CONTENT,
            f"{place}: no field '{field}'",
            f"the line has: {', '.join(record) or 'nothing'}",
            "name the right field with --field or --template",
        )
    value = record[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Stop(
            BAD_CONTENT,
            f"{place}: field '{field}' is no text",
            f"it is a {type(value).__name__}",
            "give text or a number",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Stop(
            BAD_CONTENT,
            f"{place}: field '{field}' holds half a surrogate pair",
            "it cannot be written as UTF-8",
            "repair the line",
        )
    return value


def source_digest(sources):
    """The file's SHA-256; of several files that over the lines of their hashes, in order."""
    if len(sources) == 1:
        return sources[0].sha256
    return hashlib.sha256("".join(f"{s.sha256}\n" for s in sources).encode()).hexdigest()
