"""Bad input, one row each, at one and two ranks: the exit code, one clear message, nothing half-written, no rank hangs.

More rows are in tests/faults: model files, token files, configurations that are bombs, values that are not finite.
"""

import json
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import Finished, Row, Spoilt
from workbench import main, run

# --- how each row is spoilt -------------------------------------------------------------------------


def unknown_key(row):
    row.set(prune={"targt": 0.3})


def wrong_type(row):
    row.set(prune={"iterations": "many"})


def several_wrong_keys(row):
    row.set(prune={"iterations": 0, "measure": "weights"}, device="tpu")


def no_target(row):
    value = json.loads(row.config.read_text())
    del value["prune"]["target"]
    row.config.write_text(json.dumps(value))


def set_unknown(row):
    row.arguments = ["--set", "prune.targets=0.3"]


def ranks_do_not_divide(row):
    row.arguments = ["--tensor", 3]


def sequences_above_rows(row):
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "sequences": 7}]})


def target_beyond_protection(row):
    row.set(prune={"target": 0.9, "protect": {"layers": [0, 1]}})


def unknown_resume(row):
    row.arguments = ["--resume", "perhaps"]


def file_for_directory(row):
    row.run_dir.write_text("a file")


TABLE = [
    (unknown_key, 78, ["prune.targt", "target", "config.yaml"], False),
    (wrong_type, 78, ["prune.iterations", "many"], False),
    (several_wrong_keys, 78, ["prune.iterations", "prune.measure", "device", "tpu", "3 errors"], False),
    (no_target, 78, ["prune.target"], False),
    (set_unknown, 78, ["prune.targets"], False),
    (ranks_do_not_divide, 69, ["parallel.tensor = 3"], False),
    (sequences_above_rows, 78, ["sequences = 7", "6 sequences"], False),
    (target_beyond_protection, 78, ["target", "0.9"], False),
    (unknown_resume, 64, ["perhaps"], False),
    (file_for_directory, 73, ["run"], False),
]


class BadInput(Spoilt):
    def test_table(self):
        self.every_row(TABLE)


class BadState(Finished):
    """Rows that need a run to exist."""

    def test_changed_source(self):
        row = Row(self.folder / "source", self.bench.folder)
        run_dir = row.folder / "run"
        self.succeeds("run", row.config, "--run-dir", run_dir)
        row.weights(lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2}))
        for ranks in (1, 2):
            result = run("run", row.config, "--run-dir", run_dir, ranks=ranks)
            self.fails(result, 65, ["model.safetensors", "was ", "is "])

    def test_outputs_that_exist(self):
        out = self.folder / "out"
        out.mkdir()
        self.fails(run("export", self.done, "--out", out), 73, ["exists"])
        self.assertEqual(list(out.iterdir()), [])
        file = self.folder / "file.h5"
        file.write_text("mine")
        for command in ("score", "eval"):
            for ranks in (1, 2):
                self.fails(run(command, self.config, "--out", file, ranks=ranks), 73, ["exists"])
        self.assertEqual(file.read_text(), "mine")

    def test_other_refusals(self):
        none = self.folder / "none"
        for arguments, code, words in [
            (["export", none, "--out", self.folder / "x"], 66, ["none"]),
            (["export", self.done, "--out", self.folder / "x", "--sparsity", 0.9], 78, ["0.9"]),
            (["eval", self.config, "--run-dir", self.done, "--iteration", 1], 66, ["iteration 1"]),
            (["eval", self.config, "--iteration", 1], 64, ["--run-dir"]),
            (["verify", none], 66, ["none"]),
            (["status", none], 66, ["none"]),
            (["inspect", none], 66, ["none"]),
            (["prune"], 64, ["prune"]),
            (["rnu", self.config], 64, ["run"]),
            (["run", self.config], 64, ["--run-dir"]),
            (["config", "--explain", "prune.targt"], 64, ["prune.target"]),
        ]:
            with self.subTest(arguments=arguments):
                self.fails(run(*arguments), code, words)
        self.assertFalse((self.folder / "x").exists())

    def test_directory_that_cannot_be_written(self):
        for folder in (self.class_folder, self.folder, *self.bench.folder.rglob("*"), self.bench.folder):
            folder.chmod(folder.stat().st_mode | 0o055)
        prefix = []
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                self.skipTest("root may write everywhere, and setpriv is not installed")
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
            if run("doctor", "--list-faults", prefix=prefix).code != 0:
                self.skipTest("another user may not read the program")
        closed = self.folder / "closed"
        closed.mkdir()
        closed.chmod(0o555)
        extra = {"HOME": "/tmp", "TMPDIR": "/tmp"}
        for ranks in (1, 2):
            result = run("run", self.config, "--run-dir", closed / "run", ranks=ranks, prefix=prefix, extra=extra)
            self.fails(result, 77, [str(closed)])
            result = run("run", self.config, "--run-dir", closed, ranks=ranks, prefix=prefix, extra=extra)
            self.fails(result, 77, [str(closed)])
        self.assertEqual(list(closed.iterdir()), [])


if __name__ == "__main__":
    main()
