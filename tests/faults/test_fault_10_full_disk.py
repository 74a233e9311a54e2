"""A write that fails (disk full, quota, limit, EIO) ends the run with 74; the commits before stay, and free space is
looked at first.

Fails every step of a save, some of an export and drawn calls of the system with ENOSPC or EIO, cuts a write short, sets a limit on file sizes, and
as root fills a real file system; continues where there is room again.
"""

import collections
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from killed import side_by_side
from traced import calls_in, require_strace, traced
from workbench import FULL, main, run, status_of

FAILURES = (("fsync", "EIO"), ("sync_file_range", "EIO"), ("rename", "ENOSPC"), ("write", "ENOSPC"))
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


class FailedCalls(Interrupted):
    """One call of the system fails, on the rank that writes: no fault point takes part."""

    def failed_at(self, name, call, error, number):
        run_dir = self.folder / name
        log = self.folder / f"{name}.log"
        prefix = traced(log, f"{call},openat", f"{call}:error={error}:when={number}")
        result = run("run", self.config, "--run-dir", run_dir, prefix=prefix)
        if result.code != 0:
            self.assertEqual(result.code, 74, result)
            self.assertEqual(result.err.count("espalier: "), 1, result)
            if (run_dir / "config.resolved.yaml").exists():
                self.assertEqual(run("verify", run_dir).code, 0)
        elif call != "write":  # what is said on stderr and in the log file may be lost in silence
            texts = [text for _, text in calls_in(log)]
            failed = next((number for number, text in enumerate(texts) if "INJECTED" in text), None)
            # A heartbeat is a sign of life: one that does not come is noticed by who waits for it.
            if failed is not None and not any("/heartbeat/" in text for text in texts[failed - 1 : failed + 1]):
                self.assertIn("status.json cannot be written, and is tried again", result.err)
        self.continues_to_gold(run_dir)

    def test_a_call_that_is_not_there(self):
        """Only for speed: a kernel that lacks it, or a container that forbids it, changes nothing."""
        require_strace(self)
        for error in ("ENOSYS", "EPERM"):
            log = self.folder / f"{error}.log"
            self.succeeds("run", self.config, "--run-dir", self.folder / error,
                          prefix=traced(log, "sync_file_range", f"sync_file_range:error={error}"))
            self.assertIn("INJECTED", log.read_text())

    def test_calls_of_a_whole_run(self):
        """By default two drawn calls of each kind; the long form has every one."""
        require_strace(self)
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)
        generator = random.Random(seed)
        log = self.folder / "whole.log"
        self.succeeds("run", self.config, "--run-dir", self.folder / "whole", prefix=traced(log, ",".join(call for call, _ in FAILURES)))
        counts = collections.Counter(call for call, _ in calls_in(log))
        cases = []
        for call, error in FAILURES:
            everyone = range(1, counts[call] + 1)
            numbers = everyone if FULL else generator.sample(everyone, 2)
            cases += [(f"{call}-{number}", call, error, number) for number in numbers]
        _, failures = side_by_side(self.failed_at, cases)
        self.assertEqual(failures, [], f"seed {seed}\n" + "\n".join(failures))


if __name__ == "__main__":
    os.umask(0o022)
    main()
