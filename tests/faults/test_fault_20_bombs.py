"""YAML and JSON that is a bomb, too deep, too large or no text is refused in words with its place, in little time and
memory.

Gives the program configurations and model descriptions with aliases, cycles, 100000 brackets, keys given twice, 100 MB
of text and bytes that are no UTF-8; compares the memory that the program takes.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from killed import side_by_side
from spoilt import Row, Spoilt
from traced import measured, memory_in
from workbench import main, run


def duplicate_key(row):
    row.config.write_text("model: {path: model}\nprune: {target: 0.2}\nmodel: {path: model}\n")


def yaml_bomb(row):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1)] * 10)}]" for i in range(1, 12)]
    row.config.write_text("\n".join(bomb))


TABLE = [
    (duplicate_key, 78, ["model", "3:"], False),
    (yaml_bomb, 78, ["config.yaml"], False),
]

ALIASES = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
                    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)])
# {name: (text, line:column or None where there is no place, a word of the message)}
YAML = {
    "aliases": (ALIASES, "1:5", "anchor"),
    "cycle": ("a: &a [*a]\n", "1:4", "anchor"),
    "merge": ("a: &a {b: 1}\nc: {<<: *a}\n", "1:4", "anchor"),
    "brackets": ("a: " + "[" * 100000, "1:", "deeper than 16"),
    "braces": ("{a: " * 100000, "1:61", "deeper than 16"),
    "indented": ("".join(" " * i + "a:\n" for i in range(400)), "17:17", "deeper than 16"),
    "dashes": ("- " * 20000, "1:33", "deeper than 16"),
    "values": ("a: [" + "1," * 100000 + "]", None, "more than 10000 values"),
    "twice": ("device: cpu\ndevice: cpu\n", "2:1", "device"),
    "100 MB": ("a: " + "x" * 100_000_000, None, "100000003 bytes"),
    "long": ("a: " + "x" * 1_000_000, "1:1", "unknown key"),
    "no UTF-8": (b"device: cpu\nmodel: {path: caf\xe9}\n", None, "UTF-8"),
    "NUL": (b"device: c\0pu\n", None, "config.yaml"),
    "tag": ("device: !!python/object/apply:os.system [ls]\n", "1:9", "tag"),
    "two documents": ("device: cpu\n---\ndevice: cpu\n", None, "document"),
}
JSON = {
    "brackets": "[" * 100000,
    "braces": '{"a":' * 100000,
    "twice": '{"model_type": "qwen2", "model_type": "qwen2"}',
    "100 MB": '{"a": "' + "x" * 100_000_000 + '"}',
    "no UTF-8": b'{"model_type": "\xff"}',
    "number": '{"model_type": "qwen2", "hidden_size": 1' + "0" * 100000 + "}",
    "text behind": '{"model_type": "qwen2"} x',
}


def write(path, text):
    """The text, or a sparse file of so many bytes."""
    if isinstance(text, int):
        with open(path, "wb") as file:
            file.truncate(text)
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


class Bombs(Spoilt):
    def test_table(self):
        self.every_row(TABLE)

    def refuses(self, name, text, code, words, index=""):
        row = Row(self.folder / f"{name}{index}".replace(" ", "-").replace("/", "-"), self.bench.folder)
        target = row.folder / (index or "config.yaml")
        write(target, text)
        if index.endswith("index.json"):
            (row.model / "model.safetensors").unlink()  # it would be read first
        log = row.folder / "memory"
        result = run("run", row.config, "--run-dir", row.run_dir, prefix=measured(log), timeout=30)
        self.fails(result, code, [target.name, *words])
        self.assertLess(len(result.err), 20000, "the message shows the text that it is about")
        self.assertFalse(row.run_dir.exists())
        self.assertLess(memory_in(log), self.idle + 50 * 1024, "KiB")

    def all_of(self, cases):
        """Refused, and with 50 MB at most beyond what the program has when it does next to nothing."""
        self.bench.config()
        self.succeeds("doctor", "--list-faults", prefix=measured(self.folder / "idle"))
        self.idle = memory_in(self.folder / "idle")
        _, failures = side_by_side(self.refuses, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_configurations(self):
        cases = [(name, text, 78, [word] + [f"config.yaml:{at}"] * bool(at)) for name, (text, at, word) in YAML.items()]
        self.all_of(cases)

    def test_descriptions_of_models(self):
        index = {name: JSON[name] for name in ("brackets", "twice")} | {"40 MB": 40_000_000, "300 MB": 300_000_000}
        cases = [(name, text, 65, [], "model/config.json") for name, text in JSON.items()]
        cases += [(name, text, 65, [], "model/model.safetensors.index.json") for name, text in index.items()]
        self.all_of(cases)


if __name__ == "__main__":
    main()
