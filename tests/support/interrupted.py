"""What the tests of interruption share: an uninterrupted run, and what must hold after resuming an interrupted one."""

import os
import signal
import time

from workbench import Case, Running, digest_of, metrics_of, run, status_of, weights_of

ITERATIONS = 4
EXPORT = {"export": [{"format": "exact", "path": "export/exact"}]}
# One commit is kept: every save after the first also removes one.
SMALL = {**EXPORT, "checkpoint": {"keep_last": 1, "keep_every": 0}}


class Interrupted(Case):
    change = {}  # of the configuration

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config(**SMALL, **cls.change)
        gold = cls.class_folder / "gold"
        result = run("run", cls.config, "--run-dir", gold)
        if result.code != 0:
            raise AssertionError(f"the uninterrupted run failed: {result}")
        cls.gold = {"digest": digest_of(gold), "weights": weights_of(gold / "export/exact")}
        cls.gold_losses = [row["loss"] for row in metrics_of(gold)]

    def start(self, run_dir, ranks=1, tensor=1, fault="", *more):
        extra = {"ESPALIER_FAULT": fault} if fault else None
        return Running(["run", self.config, "--run-dir", run_dir, "--tensor", tensor, *more], ranks, extra)

    def continues_to_gold(self, run_dir, tensor=1, data=1):
        """Continues an interrupted run on this layout; the end is that of the uninterrupted one."""
        self.is_at_rest(run_dir, commits_only=False)
        arguments = ["run", self.config, "--run-dir", run_dir, "--tensor", tensor]
        result = run(*arguments, ranks=tensor * data)
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result)
        return result

    def is_gold(self, run_dir, result=None):
        self.assertEqual(digest_of(run_dir), self.gold["digest"], result)
        self.assertEqual(weights_of(run_dir / "export/exact"), self.gold["weights"], result)
        self.assertEqual(status_of(run_dir)["state"], "finished")
        self.assertEqual(status_of(run_dir)["exit_code"], 0)
        rows = metrics_of(run_dir)
        self.assertEqual([row["iteration"] for row in rows], list(range(ITERATIONS + 1)), "one row per iteration")
        for row, losses in zip(rows, self.gold_losses, strict=True):
            for name, loss in losses.items():
                self.assertAlmostEqual(row["loss"][name], loss, delta=1e-9)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 0, verified)
        self.is_at_rest(run_dir)
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
