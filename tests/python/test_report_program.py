"""How launch/report.py ends: one message and the right exit code for what is missing, damaged or in the way."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import h5py
import numpy as np
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from report_case import SCRIPT, Case, make_run, plan_arrays, row, sign, write_commit, write_plan, write_scores
from espalier_report import page


def places_of(value, place=()):
    """The paths to all members of a document but the whole."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*place, key)
        yield from places_of(inner, (*place, key))


def with_value(document, place, value):
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


class Ends(Case):
    def setUp(self):
        super().setUp()
        # These are about reading and writing; drawing takes longest.
        names = ("curve-lines", "removal-map", "kept-bars", "score-histograms", "overlap-matrices", "overlap-lines", "phase-stacks")
        self.enterContext(mock.patch.object(page, "drawn", lambda run: dict.fromkeys(names)))

    def refused(self, code, *words, run_dir=None, more=()):
        """One message with the code, in three lines, and nothing written."""
        run_dir = run_dir or self.run_dir
        before = sorted(os.listdir(run_dir)) if os.path.isdir(run_dir) else None
        found, out, err = self.program(run_dir, *more)
        self.assertEqual((found, out), (code, ""), err)
        lines = err.splitlines()
        self.assertEqual(len(lines), 3, err)
        self.assertTrue(lines[0].startswith("report: stopped: ") and lines[0].endswith(f"(exit {code})"), err)
        self.assertTrue(lines[1].startswith("  why  ") and lines[2].startswith("  do   "), err)
        for word in words:
            self.assertIn(word, err)
        if before is not None:
            self.assertEqual(sorted(os.listdir(run_dir)), before, "something was left behind")


class Damage(Ends):
    def test_text_files(self):
        """Each file spoilt in each way is named."""
        spoilt = {
            "status.json": [b"", b"{", b"[]", b"\xff\xfe", b'{"state": 3}', b'{"state": "x", "iteration": "1"}', b'{"exit_code": -1}',
                            b"[" * 100_000],
            "metrics.jsonl": [b"{}\n", b"nothing\n", b"[1]\n", json.dumps({**row(1), "parameters": "many"}).encode(),
                              json.dumps({**row(1), "perplexity": 3}).encode(), json.dumps({**row(1), "loss": {"a": None}}).encode(),
                              json.dumps({**row(1), "sparsity_structures": True}).encode(), json.dumps(row(1)).encode()[:-5],
                              json.dumps(row(1)).replace("0.25", "NaN").encode(), json.dumps(row(1)).replace("0.25", "1e999").encode(),
                              json.dumps({**row(1), "multiple_choice": {"arc": 1}}).encode(), b"\n",
                              (json.dumps(row(1)) + "\n" + json.dumps(row(1))).encode()],
            "overlap.json": [b"{", b"3", b'{"domains": 1}', b'{"domains": ["a"], "iterations": [1]}',
                             b'{"domains": ["a"], "iterations": [{"iteration": 1, "attention": {"all": [[2]]}, "mlp": {"all": [[1]]}}]}',
                             b'{"domains": ["a"], "iterations": [{"iteration": 1, "attention": {"all": [[1, 1]]}, "mlp": {"all": [[1]]}}]}',
                             b'{"domains": ["a"], "iterations": [{"iteration": 1, "attention": {"all": [["x"]]}}]}'],
            "provenance.json": [b"{", b"[]"],
            "config.resolved.yaml": [b"a: [", b"- 1", b"", b"&a [*a]: {", b"!!python/object/apply:os.system ['true']"],
            "ckpt/iter-000003/MANIFEST.json": [b"{", b"{}", b'{"files": {"state.h5": {"sha256": "0"}}}'],
        }
        for name, contents in spoilt.items():
            path = self.run_dir / name
            whole = path.read_bytes()
            for content in contents:
                with self.subTest(name=name, content=content[:60]):
                    path.write_bytes(content)
                    named = "state.h5" if name.endswith("MANIFEST.json") and content != b"{" else path.name
                    self.refused(65, named)
            path.write_bytes(whole)
        self.assertEqual(self.program(self.run_dir)[0], 0)

    def test_drawn_values(self):
        """Any value of a JSON or YAML file may be another: a page or a message, never a bug."""
        values = [0, -1, 1e299, -1e299, 5e-324, 1 << 61, True, None, "x", [], {}, [[]], {"a": [1]}]
        for name in ("metrics.jsonl", "config.resolved.yaml", "overlap.json", "provenance.json", "status.json"):
            path = self.run_dir / name
            whole = path.read_text()
            documents = [json.loads(line) for line in whole.splitlines()] if name == "metrics.jsonl" else [yaml.safe_load(whole)]
            places = [(n, place) for n, document in enumerate(documents) for place in places_of(document)]
            chance = np.random.default_rng(11)
            for n, place in [places[i] for i in chance.permutation(len(places))[:40]]:
                value = values[chance.integers(len(values))]
                with self.subTest(name=name, place=place, value=value):
                    path.write_text("\n".join(json.dumps(with_value(d, place, value) if i == n else d) for i, d in enumerate(documents)))
                    code, _, err = self.program(self.run_dir)
                    self.assertIn(code, (0, 65), err)
            path.write_text(whole)

    def test_names_that_grow_when_they_are_written(self):
        bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
        config = (self.run_dir / "config.resolved.yaml").read_text().replace("models/small", "*a59")
        (self.run_dir / "config.resolved.yaml").write_text(bomb + config)
        self.assertEqual(self.program(self.run_dir)[0], 0)

    def test_plans(self):
        """Each change of a plan file that makes it none."""

        def change(edit):
            with h5py.File(self.run_dir / "plan.h5", "w") as file:
                write_plan(file, plan_arrays())
                edit(file)

        def replace(file, name, value):
            del file[name]
            file[name] = value
            if np.asarray(value).dtype.kind == "i":
                sign(file)  # so that it is not the digest that objects

        edits = {
            "no matrix": lambda f: f.__delitem__("mlp/removed_at"),
            "a group": lambda f: (f.__delitem__("mlp/removed_at"), f.create_group("mlp/removed_at")),
            "floats": lambda f: replace(f, "mlp/removed_at", np.zeros((3, 10))),
            "text": lambda f: replace(f, "mlp/removed_at", "x"),
            "one dimension": lambda f: replace(f, "mlp/removed_at", np.zeros(3, "int32")),
            "other layers": lambda f: replace(f, "mlp/removed_at", np.zeros((4, 10), "int32")),
            "no layers": lambda f: [replace(f, f"{k}/removed_at", np.zeros((0, 10), "int32")) for k in ("attention", "mlp")],
            "later than its iteration": lambda f: replace(f, "mlp/removed_at", np.full((3, 10), 4, "int32")),
            "below -1": lambda f: replace(f, "mlp/removed_at", np.full((3, 10), -2, "int32")),
            "huge": lambda f: (f.__delitem__("mlp/removed_at"), f.create_dataset("mlp/removed_at", (1 << 40, 1 << 20), "int32", chunks=(16, 16))),
            "other format": lambda f: f.attrs.__setitem__("format", "x"),
            "other version": lambda f: f.attrs.__setitem__("version", 2),
            "no attribute": lambda f: f.attrs.__delitem__("attention_unit"),
            "iteration in words": lambda f: f.attrs.__setitem__("iteration", "three"),
            "another matrix": lambda f: f["mlp/removed_at"].__setitem__((0, 0), 3),
            "iterations": lambda f: f.attrs.__setitem__("iteration", np.array([1, 2])),
        }
        for name, edit in edits.items():
            with self.subTest(name=name):
                change(edit)
                self.refused(65, "plan.h5")
        whole = io.BytesIO()
        with h5py.File(whole, "w") as file:
            write_plan(file, plan_arrays())
        content = whole.getvalue()
        for end in (0, 8, 100, len(content) // 2, len(content) - 1):
            with self.subTest(end=end):
                (self.run_dir / "plan.h5").write_bytes(content[:end])
                self.refused(65, "plan.h5")

    def test_drawn_bytes_of_a_plan(self):
        """Any byte may be another: a page or a message, never a bug."""
        content = (self.run_dir / "plan.h5").read_bytes()
        chance = np.random.default_rng(7)
        for place in chance.integers(0, len(content), 60):
            with self.subTest(place=int(place)):
                spoilt = bytearray(content)
                spoilt[place] ^= int(chance.integers(1, 256))
                (self.run_dir / "plan.h5").write_bytes(spoilt)
                code, _, err = self.program(self.run_dir)
                self.assertIn(code, (0, 65), err)

    def test_scores(self):
        def commit(edit):
            shutil.rmtree(self.run_dir / "ckpt")

            def fill(file):
                write_plan(file, plan_arrays())
                write_scores(file, plan_arrays())
                edit(file)

            write_commit(self.run_dir / "ckpt/iter-000003", fill)

        def replace(name, value):
            def edit(file):
                file[name][-1] = value

            return edit

        def shorter(file):
            scores = file["mlp/score"][:-1]
            del file["mlp/score"]
            file["mlp/score"] = scores

        for name, edit in {
            "a layer too many": replace("mlp/layer", 3), "a unit too many": replace("mlp/unit", 10), "below zero": replace("mlp/unit", -1),
            "not a number": replace("mlp/score", np.nan), "below all": replace("mlp/score", -np.inf), "shorter": shorter, "no scores": lambda f: f.__delitem__("mlp/score"),
            "no criterion": lambda f: f.attrs.__delitem__("criterion"),
        }.items():
            with self.subTest(name=name):
                commit(edit)
                self.refused(65, "state.h5")
        # Criterion obs says so of units that never fall; they are in no picture.
        commit(lambda file: None)
        whole = page.read_run(self.run_dir).scores[0].lists["mlp"]
        commit(replace("mlp/score", np.inf))
        left = page.read_run(self.run_dir).scores[0].lists["mlp"]
        for before, after in zip(whole, left):
            self.assertEqual(before[:-1].tolist(), after.tolist())
        commit(lambda file: None)
        content = (self.run_dir / "ckpt/iter-000003/state.h5").read_bytes()
        (self.run_dir / "ckpt/iter-000003/state.h5").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        self.refused(65, "state.h5", "does not match the hash")
        (self.run_dir / "ckpt/iter-000003/state.h5").unlink()
        self.refused(65, "iter-000003", "is missing")

    def test_a_commit_that_a_run_removes_meanwhile(self):
        def gone(folder, read=page.read_run.__globals__["files"].object_of):
            found = read(folder)
            if str(folder).endswith("MANIFEST.json"):
                shutil.rmtree(self.run_dir / "ckpt/iter-000003")
            return found

        with mock.patch.object(page.read_run.__globals__["files"], "object_of", gone):
            self.assertEqual(self.program(self.run_dir)[0], 0)


class Places(Ends):
    def test_command_lines(self):
        for words in ([], ["a", "b"], [self.run_dir, "--nonsense"], [self.run_dir, "--out"]):
            code, out, err = self.program(*words)
            self.assertEqual((code, out), (64, ""))
            self.assertIn("see launch/report.py --help", err)

    def test_no_run(self):
        empty = self.folder / "empty"
        empty.mkdir()
        self.refused(66, "no run directory", "no such folder", run_dir=self.folder / "none")
        self.refused(66, "no run directory", "config.resolved.yaml", run_dir=empty)
        self.refused(66, "no run directory", run_dir=self.run_dir / "status.json")
        self.refused(66, "curve.json", more=["--curve", "curve.json"])

    def test_a_file_that_is_a_directory(self):
        (self.run_dir / "plan.h5").unlink()
        (self.run_dir / "plan.h5").mkdir()
        self.refused(66, "plan.h5")

    def test_only_a_report_is_replaced(self):
        self.assertEqual(self.program(self.run_dir)[0], 0)
        self.assertEqual(self.program(self.run_dir)[0], 0)
        other = self.folder / "thesis.html"
        other.write_text("<html>mine</html>")
        self.refused(73, "thesis.html", "it is no report", more=["--out", other])
        self.assertEqual(other.read_text(), "<html>mine</html>")
        self.refused(73, "it is no report", more=["--out", self.folder])
        self.refused(73, "mkdir -p", more=["--out", self.folder / "none/a.html"])

    def test_a_directory_that_may_not_be_written(self):
        self.enterContext(mock.patch.object(page, "render", lambda run: ""))
        self.assertEqual(self.program(self.run_dir, "--out", self.folder / "first.html")[0], 0)  # what is imported is there
        self.run_dir.chmod(0o555)
        if os.geteuid() == 0:  # root may write everywhere
            self.folder.chmod(0o755)
            self.addCleanup(os.seteuid, 0)
            os.seteuid(65534)
        self.refused(77, "report.html", "choose another")
        os.seteuid(os.getuid())

    def test_a_full_disk(self):
        def full(*_):
            raise OSError(28, "No space left on device")

        with mock.patch.object(page.os, "replace", full):
            self.refused(74, "report.html", "No space left on device")

    def test_curves_that_are_none(self):
        point = {"sparsity": 0.1, "sparsity_structures": 0.1, "sparsity_parameters": 0.1, "sparsity_total_parameters": 0.1, "parameters": 9}
        for content in ({}, [], {"points": [3]}, {"points": [{}]}, {"points": [{**point, "perplexity": {"a": 3}}]}, {"points": 1}):
            with self.subTest(content=content):
                (self.folder / "curve.json").write_text(json.dumps(content))
                self.refused(65, "curve.json", more=["--curve", self.folder / "curve.json"])


class Process(unittest.TestCase):
    def test_without_matplotlib(self):
        code = (
            "import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = ['report.py', 'x']\n"
            f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(result.returncode, 69, result.stderr)
        self.assertIn("run launch/setup.sh", result.stderr)

    def test_from_its_own_folder_without_a_home(self):
        """Beside tokenize.py, which bears the name of a module that matplotlib needs; and nowhere to keep a cache of fonts."""
        with self.subTest("help"):
            result = subprocess.run([sys.executable, "report.py", "--help"], cwd=SCRIPT.parent, capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
        with tempfile.TemporaryDirectory() as folder:
            run_dir = make_run(pathlib.Path(folder) / "run")
            environment = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/proc/none", "XDG_CONFIG_HOME": "/proc/none"}
            result = subprocess.run([sys.executable, "report.py", run_dir], cwd=SCRIPT.parent, env=environment, capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, f"{run_dir}/report.html\n", ""))


if __name__ == "__main__":
    unittest.main()
