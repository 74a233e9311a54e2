"""Files of a run directory, each read as a whole. A file that is wrong ends the program by name."""

import hashlib
import io
import json
import math
import os

import h5py
import numpy as np
from espalier_launch.stop import BAD_CONTENT, Stop, stop_of

MOST_BYTES = 1 << 31  # of a file, and of a dataset: 128 layers of 65,536 channels need a tenth


def damaged(path, why):
    return Stop(
        BAD_CONTENT,
        f"'{path}' is damaged, or not what its name says",
        why,
        "espalier verify names all that is damaged in a run; take the file from a copy",
    )


def bytes_of(path):
    """The content, or None where there is no such file."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise damaged(path, f"it has more than {MOST_BYTES:,} bytes")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise stop_of(error, path)


def text_of(path):
    """The text, or None. Bytes that are no UTF-8 are shown as \\xff."""
    content = bytes_of(path)
    return None if content is None else content.decode("utf-8", "backslashreplace")


def parsed(text, path, line=None):
    """JSON as Python has it, without the numbers that JSON does not have."""
    where = "" if line is None else f"line {line}: "

    def refuse(name):
        raise damaged(path, f"{where}{name} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{where}{error}")


def object_of(path):
    """The JSON object of a file, or None where there is no such file."""
    content = bytes_of(path)
    if content is None:
        return None
    value = parsed(content, path)
    if not isinstance(value, dict):
        raise damaged(path, "it holds no JSON object")
    return value


def lines_of(path):
    """The JSON objects of a file's lines; none where there is no such file."""
    rows = []
    for number, line in enumerate((bytes_of(path) or b"").splitlines(), 1):
        row = parsed(line, path, number)
        if not isinstance(row, dict):
            raise damaged(path, f"line {number}: it is no JSON object")
        rows.append(row)
    return rows


class Facts:
    """Members of a JSON object that are what they have to be; anything else is damage."""

    def __init__(self, values, path, where=""):
        self.values, self.path, self.where = values, path, where

    def _wrong(self, name, wanted):
        return damaged(self.path, f"{self.where}{name} is no {wanted}")

    def get(self, name, kinds, wanted, default):
        value = self.values.get(name, default)
        if value is default and default is not Facts:
            return value
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self._wrong(name, wanted)
        return value

    def number(self, name, default=None):
        value = self.get(name, (int, float), "number", default)
        if value is not default and not (math.isfinite(value) and abs(value) < 1e300):
            raise self._wrong(name, "number")
        return value

    def share(self, name):
        value = self.number(name, Facts)
        if not 0 <= value <= 1:
            raise self._wrong(name, "share from 0 to 1")
        return value

    def count(self, name, default=None):
        value = self.get(name, int, "whole number", default)
        if value is not default and not 0 <= value < 1 << 62:
            raise self._wrong(name, "count")
        return value

    def text(self, name, default=""):
        return self.get(name, str, "text", default)

    def list(self, name):
        return self.get(name, list, "list", [])

    def inside(self, name):
        """The object of that name; an empty one where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "object")
        return Facts(value or {}, self.path, f"{self.where}{name}: ")

    def numbers(self, name):
        """{name: number} of an object of numbers."""
        inside = self.inside(name)
        return {key: inside.number(key, Facts) for key in inside.values}


class Arrays:
    """Datasets and attributes of an HDF5 file that was read as a whole."""

    def __init__(self, content, path):
        self.path = path
        try:
            self.file = h5py.File(io.BytesIO(content), "r")
        except (OSError, RuntimeError, ValueError) as error:
            raise damaged(path, str(error))

    def _read(self, name, work):
        try:
            return work()
        except KeyError:
            raise damaged(self.path, f"it has no {name}")
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise damaged(self.path, f"{name}: {error}")

    def array(self, name, kind, dimensions):
        """A dataset of that kind of numbers ("i" or "f") with that many dimensions."""

        def work():
            data = self.file[name]
            if not isinstance(data, h5py.Dataset) or data.dtype.kind != kind:
                raise damaged(self.path, f"{name} is no dataset of type {kind}")
            if data.ndim != dimensions:
                raise damaged(self.path, f"{name} has {data.ndim} dimensions, not {dimensions}")
            if data.size * data.dtype.itemsize > MOST_BYTES:
                raise damaged(self.path, f"{name} would have more than {MOST_BYTES:,} bytes")
            return data[()]

        return self._read(name, work)

    def _attribute(self, name, kinds, wanted):
        value = self._read(f"attribute {name}", lambda: self.file.attrs[name])
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if not isinstance(value, kinds):
            raise damaged(self.path, f"attribute {name} is no {wanted}")
        return value

    def text(self, name):
        """A text attribute of the root."""
        return self._attribute(name, str, "text")

    def integer(self, name):
        return int(self._attribute(name, np.integer, "whole number"))


def sha256(content):
    return hashlib.sha256(content).hexdigest()
