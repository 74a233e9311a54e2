"""A write that fails (disk full, quota, limit, EIO) ends the run with 74; the commits before stay, and free space is
looked at first.

Fails every step of a save and some of an export with ENOSPC or EIO, cuts a write short, sets a limit on file sizes, and
as root fills a real file system; continues where there is room again.
"""

import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from workbench import main, run, status_of

STEPS = ("open", "write", "flush", "close", "fsync", "fsync_dir", "pre_rename", "post_rename", "unlink")


class FullDisk(Interrupted):
    def commits(self, run_dir):
        return {p.relative_to(run_dir): p.read_bytes() for p in sorted((run_dir / "ckpt").glob("iter-*/*"))}

    def fails(self, run_dir, result, words=()):
        self.assertEqual(result.code, 74, result)
        self.assertEqual(result.err.count("espalier: "), 1, result)
        self.assertIn("resumable", result.err)
        for word in words:
            self.assertIn(word, result.err)
        self.assertEqual(status_of(run_dir)["state"], "failed")
        self.assertEqual(status_of(run_dir)["exit_code"], 74)

    def after_iteration_1(self):
        """A run directory with one commit, made once."""
        folder = type(self).class_folder / "one-commit"
        if not folder.exists():
            result = self.start(folder, fault="point=forward.enter;iter=2;action=kill9").wait()
            self.assertEqual(result.code, 137, result)
        return folder

    def test_every_step_of_the_save(self):
        before = self.commits(self.after_iteration_1())
        self.assertEqual(len(before), 2)
        for number, step in enumerate(STEPS):
            with self.subTest(step):
                run_dir = self.folder / step
                shutil.copytree(self.after_iteration_1(), run_dir)
                ranks = 2 if number % 3 == 0 else 1
                running = self.start(run_dir, ranks, ranks, f"point=save.{step};rank=0;iter=2;action=errno:ENOSPC")
                result = running.wait()
                self.nothing_runs(running)
                # What is written after the new commit has its name cannot undo it.
                committed = step in ("fsync_dir", "post_rename", "unlink")
                self.fails(run_dir, result, [str(run_dir), "No space left"])
                if step == "write":
                    self.assertRegex(result.err, r"\d+ bytes are needed, \d+ bytes are free")
                after = self.commits(run_dir)
                if not committed:
                    self.assertEqual(after, before)
                self.assertTrue(set(before) <= set(after) or committed, after.keys())
                verified = run("verify", run_dir)
                self.assertEqual(verified.code, 0, verified)
                self.continues_to_gold(run_dir, 1, 1)

    def test_short_write(self):
        run_dir = self.folder / "short"
        result = self.start(run_dir, fault="point=save.write;iter=2;action=short-write").wait()
        self.fails(run_dir, result, [str(run_dir)])
        self.assertEqual(run("verify", run_dir).code, 0)
        self.continues_to_gold(run_dir)

    def test_error_while_exporting(self):
        for step in ("open", "write", "fsync", "pre_rename"):
            with self.subTest(step):
                run_dir = self.folder / f"export-{step}"
                result = self.start(run_dir, fault=f"point=export.{step};action=errno:ENOSPC").wait()
                self.fails(run_dir, result)
                self.assertEqual(list((run_dir / "export").iterdir()), [], "half an export")
                self.continues_to_gold(run_dir)

    def test_limit_on_the_size_of_files(self):
        """A real limit of the system: no fault point takes part."""
        run_dir = self.folder / "limit"
        arguments = ["run", self.config, "--run-dir", run_dir]
        state = (self.after_iteration_1() / "ckpt/iter-000001/state.h5").stat().st_size
        prefix = ["prlimit", f"--fsize={state // 2}"]
        if not shutil.which("prlimit"):
            self.skipTest("prlimit is not installed")
        result = run(*arguments, prefix=prefix)
        self.assertEqual(result.code, 74, result)
        self.assertEqual(result.err.count("espalier: "), 1, result)
        self.assertIn("ulimit -f", result.err)
        self.assertEqual(list((run_dir / "ckpt").glob("iter-*")), [])
        self.continues_to_gold(run_dir)

    def test_file_system_that_is_really_full(self):
        mount = self.folder / "small"
        mount.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
        if made.returncode != 0:
            self.skipTest("a file system of 1 MiB cannot be mounted here (needs root)")
        self.addCleanup(subprocess.run, ["umount", "-l", str(mount)], capture_output=True)
        run_dir = mount / "run"
        config = self.bench.config("no-export")
        result = run("run", config, "--run-dir", run_dir, "--tensor", 2, ranks=2)
        self.assertEqual(result.code, 74, result)
        self.assertEqual(result.err.count("espalier: "), 1, result)
        self.assertRegex(result.err, r"\d+ bytes are needed, \d+ bytes are free")
        self.assertEqual(list((run_dir / "ckpt").iterdir()), [])


if __name__ == "__main__":
    os.umask(0o022)
    main()
