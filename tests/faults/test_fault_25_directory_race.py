"""Rank 0 alone makes, renames and removes what the ranks share; the others wait for it, however late it is.

Looks with strace at the calls of every rank, makes rank 0 late and a directory appear before it is made, and starts two
jobs at once in a directory that is not there yet.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, wait_for
from killed import side_by_side
from traced import NAMES, calls_in, require_strace, traced
from workbench import MPIRUN, PROGRAM, Running, environment, main, run


class DirectoryRace(Interrupted):
    def start_traced(self, run_dir, ranks, calls, inject_at_0=None):
        """A run under mpirun with strace around every rank; (its result, [log of each rank])."""
        logs = [self.folder / f"{run_dir.name}-{rank}.log" for rank in range(ranks)]
        words = [*MPIRUN]
        for rank, log in enumerate(logs):
            prefix = traced(log, calls, inject_at_0 if rank == 0 else None)
            program = [*prefix, PROGRAM, "run", self.config, "--run-dir", run_dir]
            words += [*([":"] if rank > 0 else []), "-n", "1", *program]
        words = [str(word) for word in words]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120), logs

    def test_only_rank_0_changes_names(self):
        require_strace(self)
        run_dir = self.folder / "names"
        result, logs = self.start_traced(run_dir, 3, NAMES)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.is_gold(run_dir, result.stderr)
        mine = [call for call in calls_in(logs[0]) if str(run_dir) in call[1]]
        self.assertGreater(len([call for call in mine if call[0].startswith("mkdir")]), 5)
        self.assertGreater(len([call for call in mine if call[0].startswith("rename")]), 10)
        for log in logs[1:]:
            others = [call for call in calls_in(log) if str(run_dir) in call[1]]
            # Every rank rewrites its own heartbeat and makes nothing that another one names.
            shared = [call for call in others if not re.search(r"heartbeat/\.?rank-000[12]", call[1])]
            self.assertEqual(shared, [], log.name)

    def test_rank_0_is_late(self):
        """Every directory is made a while late: nobody looks into it before."""
        require_strace(self)
        run_dir = self.folder / "late"
        result, _ = self.start_traced(run_dir, 2, "mkdir,mkdirat", "mkdir:delay_enter=150000")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.is_gold(run_dir, result.stderr)

    def places(self):
        """What the start of a run makes, in its order, and where its first mkdir stands among those of the process."""
        log = self.folder / "made.log"
        run_dir = self.folder / "made"
        self.succeeds("run", self.config, "--run-dir", run_dir, prefix=traced(log, "mkdir,mkdirat"))
        paths = [re.search(r'"([^"]*)"', text).group(1) for _, text in calls_in(log)]
        first = paths.index(str(run_dir))
        places = [os.path.relpath(path, run_dir) for path in paths[first:]]
        places = places[: next(number for number, place in enumerate(places) if ".tmp-" in place)]
        self.assertGreaterEqual(len(places), 4, places)
        return first, places

    def test_a_directory_that_appears_at_the_last_moment(self):
        """Somebody else makes it just before the program does: it is there, and that is all it wants."""
        require_strace(self)
        first, places = self.places()

        def appears(place, number):
            run_dir = self.folder / f"appears{number}"
            log = self.folder / f"appears{number}.log"
            prefix = traced(log, "mkdir,mkdirat", f"mkdir:delay_enter=1500000:when={first + number}")
            running = Running(["run", self.config, "--run-dir", run_dir], prefix=prefix)
            if place == ".":
                time.sleep(0.8)  # there is nothing to wait for
            else:
                wait_for((run_dir / places[number - 2]).is_dir, running)
                time.sleep(0.2)
            (run_dir / place).mkdir(exist_ok=True)
            result = running.wait()
            self.assertEqual(result.code, 0, result)
            self.is_gold(run_dir, result)
            return any("EEXIST" in text for _, text in calls_in(log))

        done, failures = side_by_side(appears, [(place, number) for number, place in enumerate(places, 1)])
        self.assertEqual(failures, [], "\n".join(failures))
        met = [place for (place, _), met in done if met]
        self.assertGreaterEqual(len(met), len(places) // 2, f"made too early or too late, but for {met}")

    def test_a_directory_that_is_said_to_be_there_and_is_not(self):
        """One message with the path, and the next start does the work."""
        require_strace(self)
        first, places = self.places()

        def lies(place, number):
            run_dir = self.folder / f"lies{number}"
            inject = f"mkdir:error=EEXIST:when={first + number}"
            result = run("run", self.config, "--run-dir", run_dir, prefix=traced("/dev/null", "mkdir,mkdirat", inject))
            if result.code != 0:
                self.assertIn(result.code, (66, 73, 74), result)
                self.assertEqual(result.err.count("espalier: "), 1, result)
                self.assertIn(str(run_dir), result.err)
            self.continues_to_gold(run_dir)

        _, failures = side_by_side(lies, list(zip(places, range(1, len(places) + 1), strict=True))[::2])
        self.assertEqual(failures, [], "\n".join(failures))

    def test_two_jobs_in_a_directory_that_is_not_there_yet(self):
        """One is first; the other waits for its lock and finds a finished run, or ends with 73 when it may not wait."""
        for number, (wait, codes) in enumerate(((0.1, {0, 73}), (60, {0}))):
            with self.subTest(number):
                run_dir = self.folder / f"deep{number}/er/run"
                arguments = ["run", self.config, "--run-dir", run_dir, "--lock-wait", wait]
                both = [Running(arguments, 1 + number) for _ in range(2)]
                results = [running.wait(60) for running in both]
                found = [result.code for result in results]
                self.assertIn(0, found, results)
                self.assertLessEqual(set(found), codes, results)
                self.is_gold(run_dir, results)


if __name__ == "__main__":
    main()
