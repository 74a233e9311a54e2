"""Output: the HDF5 file while it grows, and the bar on a terminal."""

import errno
import os
import shutil
import signal
import sys
import time

from espalier_launch.stop import CANNOT_CREATE, NO_PERMISSION, WRITE_FAILED, Stop

BLOCK_TOKENS = 1 << 18  # tokens handed to HDF5 at once
CHUNK_TOKENS = 1 << 14  # tokens of a chunk in the file
CHUNK_NUMBERS = 4096
TYPES = {  # of the datasets; those of one entry a token have the rows' width
    "tokens": "<i4",
    "length": "<i4",
    "loss_mask": "u1",
    "item": "<i4",
    "option": "<i2",
    "correct": "u1",
    "normalizer": "<i4",
    "answer": "text",
}
WIDE = ("tokens", "loss_mask")


class CheckedFile:
    """The bytes of a file for libhdf5, which crashes on a full disk: it never sees an error.

    The first one is kept in `error`; later writes are dropped. Whoever uses the file looks there.
    """

    def __init__(self, path):
        self.file, self.error = open(path, "x+b", buffering=0), None

    def write(self, data):
        left = memoryview(data).cast("B")
        count = len(left)
        while left and self.error is None:
            try:
                left = left[self.file.write(left) :]
            except (OSError, KeyboardInterrupt) as error:  # it may not pass through libhdf5
                self.error = error
        return count

    def readinto(self, buffer):
        return self.file.readinto(buffer)

    def read(self, size=-1):  # what h5py knows a file by; it calls readinto
        return self.file.read(size)

    def seek(self, offset, whence=os.SEEK_SET):
        return self.file.seek(offset, whence)

    def tell(self):
        return self.file.tell()

    def truncate(self, size=None):
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size

    def flush(self):
        pass

    def check(self):
        if self.error is not None:
            raise self.error


class TokenFile:
    """The HDF5 file while it grows: a temporary neighbour of `path`, renamed when complete."""

    def __init__(self, path, force):
        self.path = os.path.realpath(path) if os.path.islink(path) else path
        self.folder, self.force = os.path.dirname(self.path) or ".", force
        self.bytes = self.file = None
        self.temporary = os.path.join(
            self.folder, f".{os.path.basename(self.path)}.tmp-{os.getpid()}"
        )
        self.rows, self.waiting, self.complete = 0, [], False

    def create(self):
        """Begins the file, so that what forbids it is known before any work; call close()
        afterwards whatever happens."""
        try:
            self.bytes = CheckedFile(self.temporary)
        except OSError as error:
            refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
            raise Stop(
                NO_PERMISSION if refused else CANNOT_CREATE,
                f"cannot create '{self.path}'",
                error.strerror,
                "check that the directory may be written to, or choose another path with --out",
            )

    def require_space(self, count):
        """Stops where not even `count` bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if count > free:
            raise Stop(
                WRITE_FAILED,
                f"no room for '{self.path}'",
                f"about {count:,} bytes are needed at least, {free:,} bytes are free",
                "free space, choose another place with --out, or give --max-sequences",
            )

    def open(self, width, names, attributes, tables):
        """Lays out the datasets of the rows, and writes `tables`, {name: array}, which are whole.
        Attributes come first: none of them can spoil finished work."""
        import h5py
        import numpy

        self.np, self.text = numpy, h5py.string_dtype()
        self.file = h5py.File(self.bytes, "w")
        for name, value in attributes.items():
            self.file.attrs[name] = (
                value if isinstance(value, (str, numpy.ndarray)) else numpy.int64(value)
            )
        for name, table in tables.items():
            self.file.create_dataset(name, data=table)
        self.block = max(1, BLOCK_TOKENS // width)
        self.columns = {name: self._dataset(name, width) for name in names}

    def _dataset(self, name, width):
        row = (width,) if name in WIDE else ()
        rows = max(1, CHUNK_TOKENS // width) if row else CHUNK_NUMBERS
        dtype = self.text if TYPES[name] == "text" else TYPES[name]
        return self.file.create_dataset(
            name, (0, *row), dtype=dtype, maxshape=(None, *row), chunks=(rows, *row)
        )

    def add(self, row):
        """A row as {dataset: its entry}; what the file has no dataset for is left out."""
        self.waiting.append(row)
        self.rows += 1
        if len(self.waiting) >= self.block:
            self.flush()

    def flush(self):
        if not self.waiting:
            return
        begin = self.rows - len(self.waiting)
        for name, dataset in self.columns.items():
            dataset.resize(self.rows, axis=0)
            values = [row[name] for row in self.waiting]
            dataset[begin:] = self.np.asarray(values, dtype=dataset.dtype)
        self.waiting = []
        self.bytes.check()

    def finish(self):
        """Completes the file and gives it its name; not before its bytes are on the disk."""
        self.flush()
        self.file.close()
        self.bytes.check()
        os.fsync(self.bytes.file.fileno())
        # From here on an interruption comes too late: it waits until the name is there.
        signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._rename()
            self.complete = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _rename(self):
        path = self.path
        if not self.force and os.path.lexists(path):
            path = f"{self.path}.{os.getpid()}"
        os.replace(self.temporary, path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if path != self.path:
            raise Stop(
                CANNOT_CREATE,
                f"'{self.path}' appeared while the rows were made",
                f"the complete file is '{path}'",
                "give it the name you want: mv",
            )

    def close(self):
        """Leaves nothing behind, whatever state the file is in: a signal may come at any line."""
        try:
            if self.file is not None:
                self.file.close()
        except Exception:  # what libhdf5 says about a file that is given up does not matter
            pass
        if self.bytes is not None:
            self.bytes.file.close()
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
        sys.stderr.write(
            f"\r\x1b[Ktokenizing [{bar}] {100 * part:3.0f} %  "
            f"{done / 1e6:.1f}/{self.total / 1e6:.1f} MB  "
            f"{rows:,} rows  eta {eta:.0f} s"
        )
        sys.stderr.flush()

    def close(self):
        if self.active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
