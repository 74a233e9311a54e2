"""Parquet files as JSON lines, and zstd streams: what needs packages of its own."""

import json

from espalier_launch.stop import BAD_CONTENT, Stop, missing_package

BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20  # of a column, read at once
PIECE_BYTES = 1 << 12  # of a zstd stream, unpacked at once: at most 32,768 times as much comes out


def missing(path, package):
    return missing_package(f"'{path}' cannot be read", f"the Python package {package} is missing")


class Zstd:
    """The content of a zstd file of any number of frames. One that ends too early is an EOFError."""

    def __init__(self, file, path):
        try:
            import zstandard
        except ImportError:
            raise missing(path, "zstandard")
        self.file, self.frame, self.left, self.out = file, None, b"", b""
        # The largest window there is: `zstd --long=31` writes it.
        self.unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)

    def read(self, size):
        while not self.out:
            raw = self.left or self.file.read(PIECE_BYTES)
            if not raw:
                if self.frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return b""
            self.frame = self.frame or self.unpacker.decompressobj()
            self.out, self.left = self.frame.decompress(raw), b""
            if self.frame.eof:
                self.left, self.frame = self.frame.unused_data, None
        block, self.out = self.out[:size], self.out[size:]
        return block


class Parquet:
    """The rows of a Parquet file as JSON lines, in order, a few at a time.

    Only `fields` are read where the file has them all; otherwise everything is, so that a message
    can name what is there. Bytes count as text where they are UTF-8, else as null; times and
    decimal numbers as text.
    """

    def __init__(self, file, path, fields):
        try:
            from pyarrow import parquet
        except ImportError:
            raise missing(path, "pyarrow")
        self.path, self.rows = path, 0
        table = self._guarded(lambda: parquet.ParquetFile(file, buffer_size=BUFFER_BYTES))
        names = set(table.schema_arrow.names)
        chosen = (
            sorted(fields) if fields and fields <= names and "." not in "".join(fields) else None
        )
        self.batches = self._guarded(
            lambda: table.iter_batches(BATCH_ROWS, columns=chosen, use_threads=False)
        )

    def read(self, _size):
        """The lines of the next rows, b"" at the end."""
        rows = self._guarded(
            lambda: [r for b in [next(self.batches, None)] if b for r in b.to_pylist()]
        )
        self.rows += len(rows)
        return b"".join(json.dumps(row, default=plain).encode() + b"\n" for row in rows)

    def _guarded(self, work):
        try:
            return work()
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damaged(error)
        except (
            ValueError,
            TypeError,
            NotImplementedError,
            KeyError,
        ) as error:  # pyarrow's derive from these
            raise self._damaged(error)

    def _damaged(self, error):
        words = (str(error) or type(error).__name__).splitlines()[0]
        where = f" (behind row {self.rows})" if self.rows else ""
        return Stop(
            BAD_CONTENT,
            f"the Parquet file '{self.path}' is damaged, or holds what is not read",
            words + where,
            "make it anew, convert it to jsonl, or take it out of the input",
        )


def plain(value):
    """What JSON has no word for."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value)
