"""Two jobs never work in one run directory: the second waits 30 s (--lock-wait), then ends with 73 and names host,
process and job of the first.

Holds the first with a fault point while the second starts, on one rank and on two; then kills the first with SIGKILL,
and the one that waits, or the next one, gets the lock.
"""

import pathlib
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import frozen
from spoilt import Refused
from workbench import Running, digest_of, main, run

STANDS = {"ESPALIER_FAULT": "point=forward.enter;iter=2;nth=1;action=stop"}


class TwoJobs(Refused):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config()

    def test_run_directory_in_use(self):
        run_dir = self.folder / "busy"
        running = Running(
            ["run", self.config, "--run-dir", run_dir],
            extra={"ESPALIER_FAULT": "point=forward.enter;nth=1;action=stop"},
        )
        try:
            frozen(running)  # it holds its lock while it stands still
            for ranks in (1, 2):
                result = run("run", self.config, "--run-dir", run_dir, "--lock-wait", 0.2, ranks=ranks)
                self.fails(result, 73, [str(running.process.pid), "in use"])
        finally:
            running.kill()
        # The lock died with its holder.
        self.is_at_rest(run_dir)
        self.succeeds("run", self.config, "--run-dir", run_dir)

    def test_the_owner_is_named(self):
        run_dir = self.folder / "owner"
        running = Running(["run", self.config, "--run-dir", run_dir], extra={**STANDS, "SLURM_JOB_ID": "4711"})
        try:
            frozen(running)
            result = run("resume", run_dir, "--lock-wait", 0.2)
            owner = f"process {running.process.pid} on {socket.gethostname()} since "
            self.fails(result, 73, [owner, "job 4711", str(run_dir)])
            # The one that was refused has taken nothing from the other.
            self.assertIn(f'"pid": {running.process.pid}', (run_dir / "owner.json").read_text())
            self.assertIn("4711", (run_dir / "owner.json").read_text())
        finally:
            running.kill()

    def test_one_that_waits_gets_the_lock_of_a_killed_one(self):
        run_dir = self.folder / "waits"
        first = Running(["run", self.config, "--run-dir", run_dir], 2, STANDS)
        frozen(first)
        second = Running(["run", self.config, "--run-dir", run_dir])
        time.sleep(2)
        self.assertIsNone(second.process.poll(), "it waits 30 s by default")
        first.kill()
        result = second.wait(60)
        self.assertEqual(result.code, 0, result)
        self.assertIn("continuing with iteration 2", result.text)
        self.succeeds("verify", run_dir)
        self.is_at_rest(run_dir)
        alone = self.folder / "alone"
        self.succeeds("run", self.config, "--run-dir", alone)
        self.assertEqual(digest_of(run_dir), digest_of(alone))


if __name__ == "__main__":
    main()
