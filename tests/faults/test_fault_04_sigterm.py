"""SIGTERM needs no time to save: the last commit stands, and the same command continues, at once if it is started at
once.

Sends SIGTERM to mpirun, which leaves its ranks a second, and to one rank alone, in the middle of calibration and of a
save.
"""

import pathlib
import re
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, kill, wait_for
from killed import slow_in, wait_for_phase
from workbench import main, run


class Terminated(Interrupted):
    def test_the_launcher_and_the_job_is_started_again_at_once(self):
        run_dir = self.folder / "terminated"
        running = self.start(run_dir, 2, 1, "point=forward.enter;action=slow:100")
        wait_for(lambda: list(run_dir.glob("ckpt/iter-*")), running)
        kill(running.process.pid, signal.SIGTERM)
        # Ranks may live on for seconds: the next run waits for their lock.
        result = run("run", self.config, "--run-dir", run_dir)
        self.assertNotEqual(running.wait().code, 0)
        self.assertEqual(result.code, 0, result)
        self.nothing_runs(running)
        self.is_gold(run_dir, result)

    def test_in_the_middle_of_a_phase(self):
        """mpirun returns 1 then, whatever its ranks return: what counts is what is in the run directory."""
        cases = (("calibrate", True), ("save", True), ("save", False), ("export", True))
        for number, (phase, to_launcher) in enumerate(cases):
            with self.subTest(phase=phase, to_launcher=to_launcher):
                run_dir = self.folder / f"{phase}{number}"
                # Longer than a launcher takes to hand the signal on.
                running = self.start(run_dir, 2, 1 + number % 2, re.sub(r"slow:\d+", "slow:4000", slow_in(phase, 3)))
                wait_for_phase(running, run_dir, phase, 3)
                kill(running.process.pid if to_launcher else running.ranks()[0], signal.SIGTERM)
                result = running.wait(60)
                self.assertNotEqual(result.code, 0, result)
                self.assertEqual(result.err.count("espalier: "), 0, result)
                self.nothing_runs(running)
                self.assertEqual(run("verify", run_dir).code, 0)
                newest = max(path.name for path in (run_dir / "ckpt").glob("iter-*"))
                self.assertEqual(newest, "iter-000004" if phase == "export" else "iter-000002")
                self.continues_to_gold(run_dir, 1, 1 + number % 2)


if __name__ == "__main__":
    main()
