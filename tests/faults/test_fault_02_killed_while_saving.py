"""A kill while a commit is written loses nothing that was committed; the next start sweeps the rest away and saves it
again.

Kills the process at every passing of every fault point of one save, and with strace at single calls of the system;
continues on every other layout.
"""

import collections
import concurrent.futures
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import LAYOUTS, other_layout
from killed import Killed, listed_points, side_by_side
from traced import NAMES, calls_in, require_strace, traced
from workbench import FULL, Running, main, run


class KilledWhileSaving(Killed):
    def test_phase_save_under_mpi(self):
        points = [p for p in listed_points() if p in ("save.enter", "save.exit", "save.pre_rename", "save.post_rename")]
        self.assertEqual(len(points), 4)
        cases = [(p, f"point={p};rank=0;iter=2;action=kill9", (2, 1), other_layout((2, 1), p)) for p in points]
        cases += [(f"{p} on rank 1", f"point={p};rank=1;iter=2;action=kill9", (1, 2), other_layout((1, 2), p)) for p in points[:2]]
        self.all_of(cases)

    def test_every_call_of_the_save(self):
        """The n-th time that each point of the save is passed in iteration 2, n = 1, 2, ... until the run ends."""
        reached = {}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            points = [p for p in listed_points() if p.startswith("save.")]
            for point, count in zip(points, pool.map(self.sweep, points), strict=True):
                reached[point] = count
        self.assertEqual([p for p, count in reached.items() if count == 0], [], "points that no save passes")
        # state.h5, the manifest and LATEST are written; the directory, LATEST and the old commit are renamed.
        self.assertGreaterEqual(reached["save.write"], 3, reached)
        self.assertGreaterEqual(reached["save.pre_rename"], 3, reached)
        self.assertEqual(self.resumed_on, set(LAYOUTS) - {(1, 1)}, "every other layout takes part")

    def sweep(self, point):
        nth = 0
        while True:
            nth += 1
            name = f"{point} {nth}"
            fault = f"point={point};iter=2;nth={nth};action=kill9"
            if self.killed_and_resumed(name, fault, (1, 1), other_layout((1, 1), name)) is None:
                return nth - 1
            self.assertLess(nth, 20, point)


class KilledAtCalls(Killed):
    """SIGKILL when a call of the system is entered: no fault point takes part."""

    CALLS = f"write,pwrite64,fsync,{NAMES}"

    def killed_at(self, name, call, number):
        run_dir = self.folder / name
        prefix = traced(self.folder / f"{name}.log", call, f"{call}:signal=KILL:when={number}")
        result = Running(["run", self.config, "--run-dir", run_dir], prefix=prefix).wait()
        if result.code == 0:
            return False
        self.assertEqual(result.code, 137, result)
        if (run_dir / "config.resolved.yaml").exists():
            verified = run("verify", run_dir)
            self.assertEqual(verified.code, 0, verified)
        self.continues_to_gold(run_dir, 1, 1)
        return True

    def test_calls_of_a_whole_run(self):
        """By default one drawn call of each kind; the long form has every one."""
        require_strace(self)
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)
        generator = random.Random(seed)
        log = self.folder / "whole.log"
        self.succeeds("run", self.config, "--run-dir", self.folder / "whole", prefix=traced(log, self.CALLS))
        counts = collections.Counter(call for call, _ in calls_in(log))
        for call in ("write", "fsync", "rename", "mkdir", "unlink", "rmdir"):
            self.assertGreater(counts[call], 1, f"no {call} among {counts}")
        cases = []
        for call, count in sorted(counts.items()):
            numbers = range(1, count + 1) if FULL else generator.sample(range(1, count + 1), 1)
            cases += [(f"{call}-{number}", call, number) for number in numbers]
        done, failures = side_by_side(self.killed_at, cases)
        self.assertEqual(failures, [], f"seed {seed}\n" + "\n".join(failures))
        # How often a thread writes to the log differs by a few between runs.
        missed = [name for (name, _, _), killed in done if not killed]
        self.assertLess(len(missed), max(2, len(cases) // 10), f"seed {seed}: calls that did not come: {missed}")


if __name__ == "__main__":
    main()
