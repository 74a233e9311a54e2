"""Input: which files are read and which are passed over, and where their documents lie."""

import array
import hashlib
import json
import os
import stat
import tempfile
import zlib

from espalier_launch.stop import (
    BAD_CONTENT,
    NO_INPUT,
    UNAVAILABLE,
    USAGE,
    Stop,
    printable,
    stop_of,
)

from . import tables
from .json_records import BOM, JsonRecords

CHUNK_BYTES = 1 << 20  # of a file, read at once
MOST_LINE_BYTES = 1 << 30
SNIFF_BYTES = 1 << 16
MOST_NAMES = 20  # of what was passed over, in the summary
TEXT_SUFFIXES = frozenset(
    ".txt .md .rst .tex .py .c .h .cc .cpp .cxx .hpp .cu .cuh .f .f90 .java .js .ts .go .rs .rb "
    ".jl .r .sh .sql .yaml .yml .toml .html .xml .css .csv .tsv .log".split()
)
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson", ".jsonlines"))
KINDS = {
    "text": TEXT_SUFFIXES,
    "lines": LINE_SUFFIXES,
    "json": (".json",),
    "parquet": (".parquet", ".pq"),
}
PACKED_SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma", ".zst": "zstd", ".zstd": "zstd"}
OTHER_SUFFIXES = {
    ".zip": "unpack it, or on the way: <(unzip -p FILE)",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".arrow": "convert it to jsonl: one JSON object a line",
    ".h5": "give the text it was made of",
    ".hdf5": "give the text it was made of",
}


def kind_of(path):
    """(text, lines, json or None where the ending does not say; the packing; the odd ending)."""
    stem, suffix = os.path.splitext(path)
    packing = PACKED_SUFFIXES.get(suffix.lower())
    suffix = (os.path.splitext(stem)[1] if packing else suffix).lower()
    kind = next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
    return kind, packing, suffix if suffix in OTHER_SUFFIXES else None


class Spool:
    """What can be read only once or only from its begin, pipes and compressed files, as a file that
    can be read anywhere: nameless, beside the output."""

    def __init__(self, folder):
        self.folder, self.file, self.end = folder, None, 0

    def take(self, content, path):
        """Copies all of `content`; (where it begins, how long it is)."""
        begin = self.end
        self._append(b"")
        while block := read_block(content, CHUNK_BYTES, path):
            self._append(block)
        return begin, self.end - begin

    def _append(self, block):
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(dir=self.folder, buffering=0)
            self.file.seek(self.end)
            left = memoryview(block)
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            raise stop_of(error, self.folder, writing=True)
        self.end += len(block)

    def close(self):
        if self.file is not None:
            self.file.close()


class Hashed:
    """A file that is read once, with the count and the hash of its bytes."""

    def __init__(self, file):
        self.file, self.bytes, self.digest = file, 0, hashlib.sha256()

    def read(self, size=-1):
        block = self.file.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        return block


class Region:
    """A part of a file, read from its begin to its end."""

    def __init__(self, file, begin, size):
        self.file, self.at, self.end = file, begin, begin + size

    def read(self, size):
        self.file.seek(self.at)
        block = self.file.read(min(size, self.end - self.at))
        self.at += len(block)
        return block


def read_block(content, size, path):
    """The next bytes of a file; what a damaged compressed file makes its reader say is a Stop."""
    try:
        return content.read(size)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise stop_of(error, path)
        if not isinstance(error, (OSError, EOFError, zlib.error)) and (
            type(error).__name__ not in ("LZMAError", "ZstdError")
        ):
            raise
        raise Stop(
            BAD_CONTENT,
            f"the compressed file '{path}' is damaged",
            str(error) or "it ends too early",
            "make it anew, or take it out of the input",
        )


def lines_of(content, path):
    """The lines of `content`; one without an end is refused before it fills the memory."""
    parts, size, number = [], 0, 1
    while block := read_block(content, CHUNK_BYTES, path):
        for part in at_newlines(block):
            parts.append(part)
            size += len(part)
            if size > MOST_LINE_BYTES:
                raise Stop(
                    BAD_CONTENT,
                    f"{path}:{number}: the line is too long",
                    f"at most {MOST_LINE_BYTES} bytes are read as one document",
                    "write one JSON object a line",
                )
            if part.endswith(b"\n"):
                yield b"".join(parts)
                parts, size, number = [], 0, number + 1
    if parts:
        yield b"".join(parts)


def at_newlines(block):
    """The lines of a block; splitlines would end one at a carriage return, too."""
    *whole, last = block.split(b"\n")
    yield from (line + b"\n" for line in whole)
    if last:
        yield last


class Source:
    """One input file: its hash and where its documents lie."""

    def __init__(self, path, kind, packing, status, fields=None):
        self.fields = fields  # that alone are wanted of a table
        self.path, self.kind, self.packing, self.status = path, kind, packing, status
        self.piped = not stat.S_ISREG(status.st_mode)
        self.starts, self.sizes, self.numbers = array.array("Q"), array.array("Q"), array.array("Q")
        self.spool, self.bytes, self.sha256 = None, 0, ""

    @property
    def lines(self):
        """Whether its documents are records of fields."""
        return self.kind != "text"

    @property
    def form(self):
        """How it was read where the name alone does not say, for the provenance."""
        words = ("pipe" if self.piped else None, self.packing, self.kind)
        return " ".join(word for word in words if word)

    def open(self):
        """The file that holds the documents, to be read anywhere."""
        if self.spool is not None:
            return self.spool
        try:
            file = open(self.path, "rb")
            now = os.fstat(file.fileno())
        except OSError as error:
            raise stop_of(error, self.path)
        if self._identity(now) != self._identity(self.status):
            file.close()
            raise changed(self.path, "its size or its time is another")
        return file

    @staticmethod
    def _identity(status):
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def index(self, spool):
        """Reads the file once: hash, and begin and size of every document."""
        try:
            with open(self.path, "rb") as file:
                hashed = content = Hashed(file)
                begin = 0
                if self.kind == "parquet":
                    while read_block(hashed, CHUNK_BYTES, self.path):
                        pass
                    lines = tables.Parquet(file, self.path, self.fields)
                    begin, size = spool.take(lines, self.path)
                    file.seek(0, os.SEEK_END)
                    self.spool = spool.file
                    content = Region(spool.file, begin, size)
                elif self.piped or self.packing:
                    begin, size = spool.take(unpacked(hashed, self.packing, self.path), self.path)
                    self.spool = spool.file
                    content = Region(spool.file, begin, size)
                self.kind = self.kind or sniffed(self.path, self.spool, begin)
                self._find_documents(content, begin)
                # What the reader of a compressed file leaves unread belongs to the file's hash.
                while read_block(hashed, CHUNK_BYTES, self.path):
                    pass
        except OSError as error:
            raise stop_of(error, self.path)
        self.bytes, self.sha256 = hashed.bytes, hashed.digest.hexdigest()

    def _find_documents(self, content, begin):
        if self.kind in ("lines", "parquet"):
            self._find_lines(content, begin)
        elif self.kind == "json":
            self._find_records(content, begin)
        else:
            size = 0
            while block := read_block(content, CHUNK_BYTES, self.path):
                size += len(block)
            if size:
                self._add(begin, size, 1)

    def _find_lines(self, content, begin):
        for number, line in enumerate(lines_of(content, self.path), 1):
            if (line.removeprefix(BOM) if number == 1 else line).strip():
                self._add(begin, len(line), number)
            begin += len(line)

    def _find_records(self, content, begin):
        records = JsonRecords(self.path)
        while block := read_block(content, CHUNK_BYTES, self.path):
            for start, size, line in records.feed(block):
                self._add(begin + start, size, line)
        records.finish()

    def _add(self, start, size, number):
        self.starts.append(start)
        self.sizes.append(size)
        self.numbers.append(number)


def changed(path, why):
    stop = Stop(
        BAD_CONTENT,
        f"'{path}' changed while it was read",
        why,
        "run again when nothing writes to it",
    )
    stop.of_record = False
    return stop


def unpacked(file, packing, path):
    """What reads the content of a file that may be compressed."""
    if packing is None:
        return file
    try:
        if packing == "zstd":
            return tables.Zstd(file, path)
        if packing == "gzip":
            import gzip

            return gzip.GzipFile(fileobj=file)
        if packing == "bz2":
            import bz2

            return bz2.BZ2File(file)
        import lzma

        return lzma.LZMAFile(file)
    except ImportError as error:
        raise Stop(
            UNAVAILABLE,
            f"'{path}' cannot be unpacked",
            f"this Python was built without {packing} ({error})",
            "unpack the file, or use another Python",
        )


def sniffed(path, spool, begin):
    """lines where the first line of a file without a known ending is a JSON object, else text."""
    if spool is not None:
        spool.seek(begin)
        head = spool.read(SNIFF_BYTES)
    else:
        with open(path, "rb") as file:
            head = file.read(SNIFF_BYTES)
    line, end, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return "text"
    if not end and len(head) >= SNIFF_BYTES:
        return "lines"
    try:
        return "lines" if isinstance(json.loads(line), dict) else "text"
    except (ValueError, RecursionError):
        return "text"


class PassedOver:
    """What of the input was not read, with the reason."""

    def __init__(self):
        self.count, self.names = 0, []

    def add(self, path, reason):
        self.count += 1
        if len(self.names) < MOST_NAMES:
            self.names.append(f"{printable(path)} ({reason})")

    def clause(self):
        """The end of a sentence."""
        if not self.count:
            return ""
        names = ", ".join(self.names[:3]) + (" ..." if self.count > 3 else "")
        return f"; passed over {self.count}: {names}"

    def note(self):
        """Nothing that has to be said at once."""

    def report(self):
        """Lines for the summary."""
        if not self.count:
            return []
        lines = [f"passed over {self.count:,} of the input:", *(f"  {n}" for n in self.names)]
        if self.count > len(self.names):
            lines.append(f"  and {self.count - len(self.names):,} more")
        return lines


class Finder:
    """Finds the sources of the command line: files in the order given, directories in the order of
    names. Every file is read once, whatever number of names lead to it."""

    def __init__(self, args, out, spool):
        self.args, self.out, self.spool = args, out, spool
        self.passed, self.found, self.seen = PassedOver(), [], {}
        forced = {"text": "text", "jsonl": "lines", "json": "json", "parquet": "parquet"}
        self.forced = forced.get(args.input_format)

    def find(self, inputs=None):
        """The sources of these paths, by default of all inputs."""
        before = len(self.found)
        for path in self.args.inputs if inputs is None else inputs:
            status = self._status(path)
            if stat.S_ISDIR(status.st_mode):
                self._directory(path, status)
            else:
                self._named(path, status)
        return self.found[before:]

    def _status(self, path):
        try:
            return os.stat(path)
        except OSError as error:
            if error.errno is not None and not os.path.lexists(path):
                raise Stop(
                    NO_INPUT,
                    f"cannot read '{path}'",
                    "there is no such file or directory",
                    "check the path",
                )
            raise stop_of(error, path)

    def _known(self, path, status):
        """Whether the file or directory was met before, under whatever name."""
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            self.passed.add(path, f"the same as {printable(self.seen[key])}")
            return True
        self.seen[key] = path
        return False

    def _named(self, path, status):
        """A file that the command line names: it is read, or the program stops."""
        kind, packing, odd = kind_of(path)
        kind = self.forced or kind
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise Stop(
                BAD_CONTENT,
                f"'{path}' cannot be read as text",
                "it is a device or a socket, neither a file nor a pipe",
                "give files, directories or pipes",
            )
        if self._is_output(path, status):
            raise Stop(
                USAGE,
                f"--out '{self.args.out}' is also an input",
                "it would be replaced by what was made of it",
                "choose another path with --out",
            )
        if odd and not self.forced:
            raise Stop(
                BAD_CONTENT,
                f"'{path}' is neither text nor JSON",
                f"files that end in {odd} are not read",
                OTHER_SUFFIXES[odd],
            )
        if self.args.wants_fields and kind == "text":
            raise Stop(
                USAGE,
                f"{self.args.wants_fields} cannot be filled from '{path}'",
                "its fields come from the records of .jsonl and .json files",
                f"give such a file, --input-format jsonl, or drop {self.args.wants_fields}",
            )
        if kind is None and self.args.wants_fields:
            kind = "lines"
        if kind == "parquet" and (packing or not stat.S_ISREG(status.st_mode)):
            raise Stop(
                BAD_CONTENT,
                f"'{path}' cannot be read as Parquet",
                "it is a compressed file or a pipe, and such a file is read from its end",
                "unpack it first; Parquet is compressed inside",
            )
        if not self._known(path, status):
            self._take(Source(path, kind, packing, status, self.args.only_fields))

    def _take(self, source):
        source.index(self.spool)
        if source.starts:
            self.found.append(source)
        else:
            self.passed.add(source.path, "empty")

    def _directory(self, path, status):
        before = len(self.found)
        if self._known(path, status):
            return
        for folder, folders, files in os.walk(path, onerror=unreadable, followlinks=True):
            folders[:] = [f for f in sorted(folders) if self._enters(os.path.join(folder, f))]
            for name in sorted(files):
                self._met(os.path.join(folder, name))
        if len(self.found) == before:
            raise Stop(
                NO_INPUT,
                f"no input in the directory '{path}'",
                f"it has none that is read{self.passed.clause()}",
                "name the files themselves, or another directory",
            )

    def _enters(self, path):
        if os.path.basename(path).startswith("."):
            self.passed.add(path, "hidden")
            return False
        return not self._known(path, self._status(path))

    def _met(self, path):
        """A file in a directory: read where its ending says how, else passed over."""
        if os.path.realpath(path) == os.path.realpath(self.out.temporary):
            return
        kind, packing, odd = kind_of(path)
        if os.path.basename(path).startswith("."):
            return self.passed.add(path, "hidden")
        try:
            status = os.stat(path)
        except OSError as error:
            if kind is None:
                return self.passed.add(path, error.strerror)
            raise stop_of(error, path)
        if self._is_output(path, status):
            return self.passed.add(path, "the output")
        if kind is None:
            reason = f"{odd} is not read" if odd else "no ending of text or JSON"
            return self.passed.add(path, reason)
        if not stat.S_ISREG(status.st_mode):
            return self.passed.add(path, "no regular file")
        if self.args.wants_fields and kind == "text":
            return self.passed.add(path, f"text has no fields for {self.args.wants_fields}")
        if kind == "parquet" and packing:
            return self.passed.add(path, "compressed Parquet is not read")
        if self._known(path, status):
            return None
        source = Source(path, kind, packing, status, self.args.only_fields)
        if kind == "json" and not self._has_records(source):
            return self.passed.add(path, f"no records with {self.args.wanted}")
        return self._take(source)

    def _has_records(self, source):
        """Whether a .json file that nobody named begins with a record of the fields wanted: others
        hold settings."""
        head, records = b"", JsonRecords(source.path)
        try:
            file = open(source.path, "rb")
        except OSError as error:
            raise stop_of(error, source.path)
        with file:
            content = unpacked(file, source.packing, source.path)
            while block := read_block(content, CHUNK_BYTES, source.path):
                head += block
                try:
                    first = next(records.feed(block), None)
                    if first is not None:
                        record = json.loads(head[first[0] : first[0] + first[1]])
                        return self.args.fits(record)
                except (Stop, ValueError, RecursionError):
                    return False
        return False

    def _is_output(self, path, status):
        try:
            there = os.stat(self.out.path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)


def unreadable(error):
    """What os.walk calls for a directory it cannot list; it would pass over it in silence."""
    raise stop_of(error, error.filename)


def source_digest(sources):
    """The file's SHA-256; of several files that over the lines of their hashes, in order."""
    if len(sources) == 1:
        return sources[0].sha256
    return hashlib.sha256("".join(f"{s.sha256}\n" for s in sources).encode()).hexdigest()


def plain_path(path):
    """A byte of it that is no UTF-8 stands as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def provenance(sources):
    """The sources as JSON."""
    return json.dumps(
        [
            {
                "path": plain_path(s.path),
                "bytes": s.bytes,
                "sha256": s.sha256,
                **({"form": s.form} if s.spool is not None else {}),
            }
            for s in sources
        ],
        ensure_ascii=False,
    )
