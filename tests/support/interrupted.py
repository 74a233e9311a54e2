"""What the tests of interruption share: an uninterrupted run, and what must hold after resuming an interrupted one."""

import os
import pathlib
import signal
import time
import zlib

from workbench import Case, Running, digest_of, merged, metrics_of, run, status_of, weights_of

ITERATIONS = 4
EXPORT = {"export": [{"format": "exact", "path": "export/exact"}]}
# One commit is kept: every save after the first also removes one.
SMALL = {**EXPORT, "checkpoint": {"keep_last": 1, "keep_every": 0}}
# (tensor, data) ranks
LAYOUTS = [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3)]


def other_layout(layout, name):
    """A layout that differs from this one, always the same for the same name."""
    others = [one for one in LAYOUTS if one != layout]
    return others[zlib.crc32(name.encode()) % len(others)]


def wait_for(condition, running=None, timeout=120, pause=0.02):
    """Waits for a state, however busy the machine is; an end of the run before it is a failure."""
    deadline = time.monotonic() + timeout
    while not condition():
        ended = running is not None and running.process.poll() is not None
        if ended and condition():  # it came while we asked
            return
        if ended or time.monotonic() > deadline:
            if running is None:
                raise AssertionError(f"the awaited state did not come in {timeout} s")
            running.kill()
            raise AssertionError(f"the awaited state did not come: {running.result(running.process.returncode)}")
        time.sleep(pause)


def phase_of(run_dir):
    return status_of(run_dir)["phase"] if (run_dir / "status.json").exists() else None


def is_stopped(pid):
    """Whether SIGSTOP holds this process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def is_pending(pid, number):
    """Whether this signal has reached the process and waits for it to run on."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def frozen(running, count=1):
    """Waits until so many ranks stand at a fault point whose action is `stop`; returns their process numbers."""
    found = []

    def all_stand():
        found[:] = [pid for pid in running.ranks() if is_stopped(pid)]
        return len(found) >= count

    wait_for(all_stand, running)
    return found


class Interrupted(Case):
    change = {}  # of the configuration
    iterations = ITERATIONS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare()
        cls.config = cls.bench.config(**merged(SMALL, cls.change))
        gold = cls.class_folder / "gold"
        result = run("run", cls.config, "--run-dir", gold)
        if result.code != 0:
            raise AssertionError(f"the uninterrupted run failed: {result}")
        cls.gold = {"digest": digest_of(gold), "weights": weights_of(gold / "export/exact")}
        cls.gold_losses = [row["loss"] for row in metrics_of(gold)]

    @classmethod
    def prepare(cls):
        """Files that the configuration names, beside those of the workbench."""

    def start(self, run_dir, ranks=1, tensor=1, fault="", *more):
        extra = {"ESPALIER_FAULT": fault} if fault else None
        return Running(["run", self.config, "--run-dir", run_dir, "--tensor", tensor, *more], ranks, extra)

    def continues_to_gold(self, run_dir, tensor=1, data=1, set_aside=()):
        """Continues an interrupted run on this layout; the end is that of the uninterrupted one."""
        self.is_at_rest(run_dir, commits_only=False)
        arguments = ["run", self.config, "--run-dir", run_dir, "--tensor", tensor]
        result = run(*arguments, ranks=tensor * data)
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result, set_aside)
        return result

    def is_gold(self, run_dir, result=None, set_aside=()):
        self.assertEqual(digest_of(run_dir), self.gold["digest"], result)
        self.assertEqual(weights_of(run_dir / "export/exact"), self.gold["weights"], result)
        self.assertEqual(status_of(run_dir)["state"], "finished")
        self.assertEqual(status_of(run_dir)["exit_code"], 0)
        rows = metrics_of(run_dir)
        self.assertEqual([row["iteration"] for row in rows], list(range(self.iterations + 1)), "one row per iteration")
        for row, losses in zip(rows, self.gold_losses, strict=True):
            for name, loss in losses.items():
                self.assertAlmostEqual(row["loss"][name], loss, delta=1e-9)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 0, verified)
        self.is_at_rest(run_dir, set_aside=set_aside)
        hidden = [p.name for p in run_dir.iterdir() if p.name.startswith(".") and p.name != ".lock"]
        self.assertEqual(hidden, [], "leftovers in the run directory")
        self.assertEqual([p.name for p in (run_dir / "export").iterdir()], ["exact"], "leftovers of exports")
        self.assertFalse((run_dir / "STOP").exists())

    def nothing_runs(self, running, seconds=30):
        """The promise is that all ranks are gone in 30 s; those of a killed launcher live on for a while."""
        end = time.monotonic() + seconds
        while running.ranks() and time.monotonic() < end:
            time.sleep(0.1)
        self.assertEqual(running.ranks(), [], f"ranks outlive their launcher by {seconds} s")


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False
