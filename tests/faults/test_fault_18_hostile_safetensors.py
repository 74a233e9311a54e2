"""A safetensors file whose header lies is refused with 65 before anything is allocated for it, with the file and what
is wrong.

Gives the program three dozen crafted files: lengths of the header from 0 to all ones, extents whose product wraps,
offsets that overlap, leave holes or lead elsewhere, deep and long JSON; compares the memory that the program takes.
"""

import json
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from killed import side_by_side
from spoilt import Row, Spoilt
from traced import measured, memory_in
from workbench import main, run


def huge_header(row):
    (row.model / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")


def overlapping_header(row):
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for i in range(2)}).encode()
    (row.model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def short_shard(row):
    path = row.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


TABLE = [
    (huge_header, 65, ["model.safetensors"], False),
    (overlapping_header, 65, ["model.safetensors"], False),
    (short_shard, 65, ["model.safetensors"], False),
]

GOOD = '{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
MOST = 2**64 - 1


def lengthy(length, header=GOOD):
    return struct.pack("<Q", length) + header.encode() + bytes(8)


def file_of(header, size=8):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def tensor(dtype="F32", shape="[2]", offsets="[0,8]"):
    return f'{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'


def two(first, second):
    entries = (f'"{name}":{{"dtype":"U8","shape":[4],"data_offsets":{at}}}' for name, at in (("t", first), ("u", second)))
    return "{" + ",".join(entries) + "}"


def many(count):
    entries = (f'"t{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}' for i in range(count))
    return file_of("{" + ",".join(entries) + "}", 4 * count)


# {what is wrong: (the file, a word of the message)}
CORPUS = {
    "empty": (b"", "empty"),
    "seven bytes": (bytes(7), "too few"),
    "length 0": (lengthy(0), "length is 0"),
    "length 1": (lengthy(1), "length is 1"),
    "length past the end": (lengthy(len(GOOD) + 9), "cut off"),
    "length 2^63": (lengthy(2**63), "9223372036854775808"),
    "length that wraps with 8": (lengthy(MOST - 7), "cut off"),
    "length 2^64 - 1": (lengthy(MOST), "18446744073709551615"),
    "big-endian length": (struct.pack(">Q", len(GOOD)) + GOOD.encode() + bytes(8), "cut off"),
    "pickle": (b"\x80\x02}q\x01." + b"x" * 90, "cut off"),
    "list": (file_of("[]"), "must begin with"),
    "cut JSON": (file_of('{"t":'), "invalid JSON"),
    "two objects": (file_of("{}{}"), "invalid JSON"),
    "NUL": (file_of(b"{}\0\0"), "NUL"),
    "no UTF-8": (file_of(b'{"\xff\xfe":1}'), "UTF-8"),
    "deep": (file_of('{"t":' + "[" * 100000 + "]" * 100000 + "}"), "deeper"),
    "name twice": (file_of(two("[0,4]", "[4,8]").replace('"u"', '"t"')), "duplicate"),
    "reversed offsets": (file_of(tensor(offsets="[8,0]")), "[8, 0]"),
    "negative offset": (file_of(tensor(offsets="[-8,0]")), "data_offsets"),
    "offset past the end": (file_of(tensor(shape="[4]", offsets="[0,16]")), "8 bytes of data"),
    "huge offset": (file_of(tensor(offsets=f"[{MOST},{MOST}]")), str(MOST)),
    "product that wraps": (file_of(tensor(shape=f"[{2**62 + 2}]")), "does not fit"),
    "product of two that wraps": (file_of(tensor("U8", f"[{2**32},{2**32}]", "[0,0]"), 0), "does not fit"),
    "product with a zero that wraps": (file_of(tensor("U8", f"[0,{2**32},{2**32}]", "[0,0]"), 0), "does not fit"),
    "extent beyond 64 bits": (file_of(tensor("U8", f"[{2**64}]")), "extents are integers"),
    "negative extent": (file_of(tensor(shape="[-2]")), "'-2'"),
    "shape larger than the data": (file_of(tensor(shape="[3]")), "need 12"),
    "unknown dtype": (file_of(tensor("F31")), "F31"),
    "hole": (file_of(two("[0,4]", "[5,9]"), 9), "hole"),
    "overlap": (file_of(two("[0,4]", "[2,6]"), 6), "overlap"),
    "same range twice": (file_of(two("[0,4]", "[0,4]"), 4), "overlap"),
    "bytes that belong to nothing": (file_of(GOOD, 9), "last byte"),
    "tensor that is a number": (file_of('{"t":5}', 0), "object"),
}


class HostileSafetensors(Spoilt):
    def test_table(self):
        self.every_row(TABLE)

    def idle(self):
        """KiB of the program when it does next to nothing."""
        log = self.class_folder / "idle"
        if not log.exists():
            self.succeeds("doctor", "--list-faults", prefix=measured(log))
        return memory_in(log)

    def crafted(self, name, content, word):
        row = Row(self.folder / name.replace(" ", "-"), self.bench.folder)
        (row.model / "model.safetensors").write_bytes(content)
        log = row.folder / "memory"
        result = run("run", row.config, "--run-dir", row.run_dir, prefix=measured(log))
        self.fails(result, 65, [str(row.model / "model.safetensors"), word])
        self.assertLess(memory_in(log), self.idle() + 16 * 1024, "KiB")
        self.assertFalse(row.run_dir.exists())
        return result

    def test_crafted_files(self):
        self.assertGreater(len(CORPUS), 25)
        self.bench.config()
        self.idle()
        _, failures = side_by_side(self.crafted, [(name, *case) for name, case in CORPUS.items()])
        self.assertEqual(failures, [], "\n".join(failures))

    def test_a_length_that_the_file_has(self):
        """Sparse, so that the length fits: it is beyond the limit of headers, which is looked at first."""
        self.bench.config()
        row = Row(self.folder / "sparse", self.bench.folder)
        with open(row.model / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", 2**33) + b"{")
            file.truncate(2**33 + 8)
        log = self.folder / "memory"
        result = run("run", row.config, "--run-dir", row.run_dir, prefix=measured(log))
        self.fails(result, 65, ["model.safetensors", str(2**33)])
        self.assertLess(memory_in(log), self.idle() + 16 * 1024, "KiB")

    def test_many_tensors(self):
        self.bench.config()
        row = Row(self.folder / "many", self.bench.folder)
        (row.model / "model.safetensors").write_bytes(many(20000))
        result = run("run", row.config, "--run-dir", row.run_dir, timeout=60)
        self.fails(result, 65, ["model.embed_tokens.weight", str(row.model)])
        self.assertLess(len(result.err.splitlines()), 200, "a list of twenty thousand helps nobody")

    def test_every_shard_is_looked_at(self):
        """All broken ones of an index are named at once."""
        self.bench.config()
        row = Row(self.folder / "shards", self.bench.folder)
        names = {}
        row.weights(lambda tensors: names.update(dict.fromkeys(tensors, "good.safetensors")))
        (row.model / "model.safetensors").rename(row.model / "good.safetensors")
        for name, case in (("first", "overlap"), ("second", "length 2^63")):
            names[f"{name}.weight"] = f"{name}.safetensors"
            (row.model / f"{name}.safetensors").write_bytes(CORPUS[case][0])
        (row.model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        result = run("run", row.config, "--run-dir", row.run_dir)
        self.fails(result, 65, ["first.safetensors", "overlap", "second.safetensors", "9223372036854775808"])


if __name__ == "__main__":
    main()
