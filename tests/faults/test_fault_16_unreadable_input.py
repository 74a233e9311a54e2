"""Input that is missing (66) or may not be read (77), on any rank, is found before any work, and everything that is
wrong is listed.

Removes and closes the configuration, the model, shards and token files, by themselves and several at once, on one rank
and on two, and closes one file to one of two ranks only; root is run without the capabilities that let it read
everything.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import Row, Spoilt
from workbench import MPIRUN, PROGRAM, environment, main, run

# Root reads what mode bits forbid; without these it is held to them as the owner of the files.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


def no_config(row):
    row.config.unlink()


def no_model(row):
    shutil.rmtree(row.model)


def missing_shard(row):
    names = {}

    def note(tensors):
        names.update(dict.fromkeys(tensors, "model-00001-of-00002.safetensors"))

    row.weights(note)
    (row.model / "model.safetensors").rename(row.model / "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (row.model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def no_tokens(row):
    (row.folder / "eval.h5").unlink()
    (row.folder / "b.h5").unlink()


TABLE = [
    (no_config, 66, ["config.yaml"], False),
    (no_model, 66, ["model"], False),
    (missing_shard, 66, ["model-00002-of-00002.safetensors"], False),
    (no_tokens, 66, ["b.h5", "eval.h5"], False),
]


class Missing(Spoilt):
    def test_table(self):
        self.every_row(TABLE)


class Closed(Spoilt):
    def setUp(self):
        super().setUp()
        self.bench.config()
        self.prefix = []
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                self.skipTest("root may read everything, and setpriv is not installed")
            self.prefix = BOUND
            closed = self.folder / "closed"
            closed.write_text("x")
            closed.chmod(0)
            if subprocess.run([*BOUND, "cat", closed], capture_output=True).returncode == 0:
                self.skipTest("root may read everything here, whatever it gives up")

    def row(self, name):
        return Row(self.folder / name, self.bench.folder)

    def refused(self, row, code, names, ranks):
        result = run("run", row.config, "--run-dir", row.run_dir, ranks=ranks, prefix=self.prefix)
        self.fails(result, code, names)
        self.assertFalse(row.run_dir.exists(), "a run directory was made for nothing")
        self.assertNotIn("calibrate", result.text)
        return result

    def test_one_of_each(self):
        names = ("config.yaml", "model", "model/config.json", "model/model.safetensors", "b.h5", "eval.h5")
        for number, name in enumerate(names):
            with self.subTest(name):
                row = self.row(str(number))
                (row.folder / name).chmod(0)
                self.addCleanup((row.folder / name).chmod, 0o755)
                self.refused(row, 77, [name], 1 + number % 2)

    def test_a_directory_on_the_way(self):
        row = self.row("way")
        (row.folder / "data").mkdir()
        (row.folder / "b.h5").rename(row.folder / "data/b.h5")
        row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5"}, {"name": "b", "tokens": "data/b.h5"}]})
        (row.folder / "data").chmod(0)
        self.addCleanup((row.folder / "data").chmod, 0o755)
        for ranks in (1, 2):
            self.refused(row, 77, ["data/b.h5"], ranks)

    def test_all_at_once(self):
        """A closed shard, a closed token file and two that are missing: one list, and the lowest of their codes."""
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                row = self.row(f"all{ranks}")
                missing_shard(row)
                (row.model / "model-00001-of-00002.safetensors").chmod(0)
                (row.folder / "a.h5").chmod(0)
                (row.folder / "eval.h5").unlink()
                shards = [f"model/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
                result = self.refused(row, 66, [*shards, "a.h5", "eval.h5"], ranks)
                self.assertRegex(result.err, r"^espalier: 4 (problems|errors)")
                self.assertEqual(len(re.findall("Permission denied", result.err)), 2, result)

    def test_several_that_are_closed(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                row = self.row(f"closed{ranks}")
                names = ["model/model.safetensors", "a.h5", "b.h5", "eval.h5"]
                for name in names:
                    (row.folder / name).chmod(0)
                self.refused(row, 77, names, ranks)

    def test_closed_to_one_rank_only(self):
        """What rank 0 can read, another may not: said by all, and nobody waits."""
        if not self.prefix:
            self.skipTest("two ranks with other rights need root")
        for name in ("b.h5", "model/model.safetensors"):
            with self.subTest(name):
                row = self.row(pathlib.Path(name).stem)
                (row.folder / name).chmod(0)
                words = [PROGRAM, "run", row.config, "--run-dir", row.run_dir]
                ranks = map(str, [*MPIRUN, "-n", 1, *words, ":", "-n", 1, *self.prefix, *words])
                result = subprocess.run(list(ranks), env=environment(), capture_output=True, text=True, timeout=60)
                self.assertEqual(result.returncode, 77, result.stderr)
                self.assertEqual(len(re.findall("^espalier: ", result.stderr, re.M)), 1, result.stderr)
                self.assertIn(name, result.stderr)
                self.assertEqual(list(row.run_dir.glob("ckpt/*")), [])


if __name__ == "__main__":
    main()
