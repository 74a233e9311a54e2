"""What the tests of bad input share: a copy of the bench to spoil, and what every refusal must be."""

import concurrent.futures
import json
import pathlib
import re
import shutil

import h5py
from workbench import Case, merged, run

BEGUN = True


class Row:
    """One copy of the bench to spoil."""

    def __init__(self, folder, bench):
        self.folder = folder
        shutil.copytree(bench, folder)
        self.model = folder / "model"
        self.config = folder / "config.yaml"
        self.run_dir = folder / "run"
        self.extra = {}
        self.arguments = []

    def set(self, **change):
        self.config.write_text(json.dumps(merged(json.loads(self.config.read_text()), change), indent=1))

    def set_model(self, without=(), **change):
        path = self.model / "config.json"
        fields = {k: v for k, v in merged(json.loads(path.read_text()), change).items() if k not in without}
        path.write_text(json.dumps(fields))

    def weights(self, change):
        from safetensors.numpy import load_file, save_file

        path = self.model / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    def tokens(self, change, name="b.h5"):
        with h5py.File(self.folder / name, "r+") as file:
            change(file)


class Refused(Case):
    def fails(self, result, code, words):
        self.assertEqual(result.code, code, result)
        blocks = re.findall(r"^espalier: ", result.err, re.MULTILINE)
        self.assertEqual(len(blocks), 1, f"one error block: {result}")
        for word in words:
            self.assertIn(word, result.err, result)
        self.assertIn(f"exit {code}", result.err)


class Spoilt(Refused):
    """Runs rows of (spoil, exit code, words of the message, begun).

    The word RANK stands for "rank" and the number of the last one, LAST for its number alone; in arguments and the
    environment RANKS and RANK are numbers. `begun`: the error can only be seen after the run directory was made.
    """

    def one(self, spoil, code, words, begun, ranks):
        row = Row(self.folder / f"{spoil.__name__}-{ranks}", self.bench.folder)
        spoil(row)
        last = str(ranks - 1)
        extra = {name: value.replace("RANK", last) for name, value in row.extra.items()}
        arguments = [str(a).replace("RANKS", str(ranks)) for a in row.arguments]
        was_there = row.run_dir.exists()
        result = run("run", row.config, "--run-dir", row.run_dir, *arguments, ranks=ranks, extra=extra)
        words = [w.replace("LAST", last) if w != "RANK" else f"rank {last}" for w in words]
        if ranks == 1:  # one process calls itself no rank everywhere
            words = [w for w in words if w not in ("rank", "rank 0")]
        self.fails(result, code, words)
        if not begun:
            self.assertEqual(row.run_dir.exists(), was_there, "a run directory was made for nothing")
        self.assertEqual(list(row.folder.glob("run/ckpt/*")), [], "half-written")
        self.assertFalse((row.run_dir / "export").exists())
        if begun and (row.run_dir / "status.json").exists():
            status = json.loads((row.run_dir / "status.json").read_text())
            self.assertEqual((status["state"], status["exit_code"]), ("failed", code), result)

    def every_row(self, table, all_ranks=(1, 2)):
        self.bench.config()
        failures = []
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            cases = [(*row, ranks) for row in table for ranks in all_ranks]
            futures = {pool.submit(self.one, *case): (case[0].__name__, case[-1]) for case in cases}
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except Exception as error:  # noqa: BLE001: every row is reported
                    failures.append("{} at {} ranks: {}".format(*futures[future], error))
        if failures:
            self.fail("\n\n".join(failures))


class Finished(Refused):
    """Rows that need a run to exist."""

    change = {}  # of the configuration

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config(**cls.change)
        cls.done = cls.class_folder / "done"
        result = run("run", cls.config, "--run-dir", cls.done)
        if result.code != 0:
            raise AssertionError(result)

    def copy(self, name="copy"):
        return pathlib.Path(shutil.copytree(self.done, self.folder / name))
