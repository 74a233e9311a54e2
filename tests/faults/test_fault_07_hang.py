"""A rank that does not get on ends the run with 76 on every rank; one message says which rank, on which host, where and
since when.

Stops one rank (SIGSTOP) or keeps it busy in every phase, two of three, and one of four; what is only slow or suspended
as a whole must be left alone. The ended runs are continued.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, frozen
from workbench import FULL, MPIRUN, PROGRAM, environment, main, run, status_of

TIMEOUT = 2.0
PHASES = ["resume", "load", "calibrate", "forward", "backward", "reduce", "rank", "slice", "save", "evaluate", "export"]


class Stopped(Interrupted):
    """SIGSTOP: the process stands still and answers nothing."""

    def hangs(self, name, fault, guilty, ranks=2, tensor=1, phase=r"[a-z ]+"):
        run_dir = self.folder / name
        running = self.start(run_dir, ranks, tensor, fault, "--hang-timeout", TIMEOUT)
        result = running.wait(60)
        self.assertNotIn(result.code, (0, None), result)
        self.assertEqual(len(re.findall(r"^espalier: .*\(exit 76", result.err, re.M)), 1, f"one error, said once: {result}")
        host = re.escape(socket.gethostname())
        self.assertRegex(result.err, rf"the run hangs in phase '{phase}': rank {guilty} on {host} \(process \d+\) did nothing for \d+ s")
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"]), ("failed", 76), status)
        self.assertIn(f"rank {guilty} on", status["reason"])
        self.nothing_runs(running, 5)
        for rank in set(range(ranks)) - {guilty}:
            stack = (run_dir / f"hang/rank-{rank:04}.stack").read_text()
            self.assertIn(f"rank {rank} of {ranks}", stack)
            self.assertIn("MPI", stack, "where it waits")
        said = run("status", run_dir, "--exit-code")
        self.assertEqual(said.code, 76, said)
        return run_dir, result

    def test_every_phase_on_either_rank(self):
        for number, phase in enumerate(PHASES):
            for rank in (0, 1) if FULL else (number % 2,):
                with self.subTest(phase=phase, rank=rank):
                    fault = f"point={phase}.enter;rank={rank};action=stop" + ("" if phase in ("resume", "load", "export") else ";iter=2")
                    tensor = 2 if phase in ("forward", "backward") else 1
                    shown = {"resume": "hash inputs", "forward": "calibrate", "backward": "calibrate", "reduce": "calibrate"}.get(phase, phase)
                    run_dir, result = self.hangs(f"{phase}-{rank}", fault, rank, tensor=tensor, phase=shown)
                    self.assertLess(result.seconds, 25)
                    self.continues_to_gold(run_dir, 1, 1)

    def test_the_root_in_the_middle_of_a_save(self):
        run_dir, _ = self.hangs("save", "point=save.manifest;rank=0;iter=2;action=stop", 0, phase="save")
        self.continues_to_gold(run_dir, 2, 1)

    def test_rank_in_the_middle_of_four(self):
        """One that is watched and does not look at everybody itself."""
        run_dir, _ = self.hangs("middle", "point=rank.enter;rank=1;iter=2;action=stop", 1, ranks=4, tensor=2)
        self.continues_to_gold(run_dir, 1, 2)

    def test_two_of_three(self):
        run_dir = self.folder / "two"
        fault = "point=rank.enter;rank=0;iter=2;action=stop|point=rank.enter;rank=2;iter=2;action=stop"
        running = self.start(run_dir, 3, 1, fault, "--hang-timeout", TIMEOUT)
        result = running.wait(60)
        self.assertRegex(result.err, r"the run hangs in phase 'rank': rank 0 on .*, rank 2 on .* did nothing")
        self.nothing_runs(running, 5)
        self.continues_to_gold(run_dir, 1, 1)


class AtWork(Interrupted):
    def test_a_step_without_end_is_blamed_on_who_does_it(self):
        run_dir = self.folder / "slow"
        running = self.start(run_dir, 2, 1, "point=rank.enter;rank=1;iter=2;action=slow:60000", "--hang-timeout", TIMEOUT)
        result = running.wait(40)
        self.assertRegex(result.err, r"the run hangs in phase 'rank': rank 1 on .* did nothing")
        self.assertIn("does not come to an end", result.err)
        self.assertIn("fault", (run_dir / "hang/rank-0001.stack").read_text(), "where it is")
        self.nothing_runs(running, 5)
        self.continues_to_gold(run_dir, 1, 1)

    def test_alone(self):
        run_dir = self.folder / "alone"
        running = self.start(run_dir, 1, 1, "point=rank.enter;iter=2;action=slow:60000", "--hang-timeout", TIMEOUT)
        result = running.wait(40)
        self.assertEqual(result.code, 76, result)
        self.assertEqual(status_of(run_dir)["exit_code"], 76)
        self.continues_to_gold(run_dir, 1, 1)


class Fine(Interrupted):
    """What takes long and is no hang."""

    def is_left_alone(self, name, fault):
        run_dir = self.folder / name
        result = self.start(run_dir, 2, 1, fault, "--hang-timeout", TIMEOUT).wait(120)
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result)
        self.assertGreater(result.seconds, 2 * TIMEOUT, "the other rank waited for long enough")

    def test_steps_that_are_slow_but_end(self):
        """Many steps of two fifths of the time allowed, on one rank, while the other waits for it all along."""
        slow = [f"point=forward.enter;rank=1;iter={i};action=slow:{TIMEOUT * 400:.0f}" for i in (2, 3)]
        self.is_left_alone("slow", "|".join(slow))

    def test_one_rank_exports_and_the_others_wait(self):
        self.is_left_alone("export", f"point=export.write;action=slow:{TIMEOUT * 600:.0f}")

    def test_a_job_that_was_suspended_as_a_whole(self):
        run_dir = self.folder / "suspended"
        running = self.start(run_dir, 2, 1, "point=rank.enter;iter=2;action=stop", "--hang-timeout", TIMEOUT)
        ranks = frozen(running, 2)
        time.sleep(2 * TIMEOUT)  # all clocks go on
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result)

    def test_a_run_directory_that_only_rank_0_sees(self):
        run_dir = self.folder / "own"
        words = [PROGRAM, "run", self.config, "--tensor", 1, "--hang-timeout", TIMEOUT, "--run-dir"]
        ranks = [*MPIRUN, "-n", 1, *words, run_dir, ":", "-n", 1, *words, self.folder / "elsewhere"]
        result = subprocess.run([str(word) for word in ranks], env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("nobody watches for hangs", result.stderr)
        self.is_gold(run_dir, result.stderr)
        self.assertFalse((self.folder / "elsewhere").exists())

    def test_nobody_watches(self):
        run_dir = self.folder / "off"
        running = self.start(run_dir, 2, 1, "point=rank.enter;rank=1;iter=2;action=stop", "--hang-timeout", 0)
        (pid,) = frozen(running)
        self.assertEqual(list((run_dir / "heartbeat").iterdir()), [])
        os.kill(pid, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result)


if __name__ == "__main__":
    main()
