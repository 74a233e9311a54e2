"""Output: the HDF5 file while it grows, and the bar on a terminal."""

import errno
import os
import sys
import time

from .stop import CANNOT_CREATE, NO_PERMISSION, Stop

BLOCK_TOKENS = 1 << 18  # tokens handed to HDF5 at once


class TokenFile:
    """The HDF5 file while it grows: a temporary neighbour of `path`, renamed when complete."""

    def __init__(self, path, width, lengths, masks):
        import h5py
        import numpy

        self.np, self.path, self.width = numpy, path, width
        self.temporary = os.path.join(
            os.path.dirname(path) or ".", f".{os.path.basename(path)}.tmp-{os.getpid()}"
        )
        self.rows, self.waiting = 0, []
        try:
            self.file = h5py.File(self.temporary, "w-")
        except OSError as error:
            raise Stop(
                NO_PERMISSION
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                else CANNOT_CREATE,
                f"cannot create '{path}'",
                os.strerror(error.errno) if error.errno else str(error),
                "check that the directory may be written to, or choose another path with --out",
            )
        rows = max(1, min(4096, BLOCK_TOKENS // width))
        self.block = rows
        self.tokens = self._dataset("tokens", (width,), "<i4", rows)
        self.lengths = self._dataset("length", (), "<i4", 4096) if lengths else None
        self.masks = self._dataset("loss_mask", (width,), "u1", rows) if masks else None

    def _dataset(self, name, row, dtype, rows):
        return self.file.create_dataset(
            name, (0, *row), dtype=dtype, maxshape=(None, *row), chunks=(rows, *row)
        )

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
        sys.stderr.write(
            f"\r\x1b[Ktokenizing [{bar}] {100 * part:3.0f} %  "
            f"{done / 1e6:.1f}/{self.total / 1e6:.1f} MB  "
            f"{rows:,} rows  eta {eta:.0f} s"
        )
        sys.stderr.flush()

    def clear(self):
        if self.active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
