"""A rank killed at any moment costs one iteration at most: all ranks are gone in 30 s, and the same command goes on, on
any layout.

Kills one rank at the start and end of every phase, and a drawn one at drawn moments of every phase; each run is
continued on another layout than the one that died, to the plan and the bytes of an uninterrupted run.
"""

import collections
import os
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import LAYOUTS, Interrupted, kill, other_layout, phase_of, wait_for
from killed import SLOW, Killed, listed_points, side_by_side, slow_in, wait_for_phase
from workbench import FULL, main, run

PHASES_EVERY_RANK_PASSES = ("load", "calibrate", "forward", "backward", "reduce", "rank", "slice", "evaluate", "resume")


class KilledAtFaultPoints(Killed):
    def test_every_phase_on_either_rank(self):
        cases = []
        points = [p for p in listed_points() if p.split(".")[0] in PHASES_EVERY_RANK_PASSES]
        for number, point in enumerate(points):
            at = "" if point.split(".")[0] in ("load", "resume") else "iter=2;"
            for rank in (0, 1) if FULL else (number % 2,):
                layout = [(2, 1), (1, 2)][(number // 2) % 2]
                name = f"{point} on rank {rank}"
                fault = f"point={point};rank={rank};{at}action=kill9"
                cases.append((name, fault, layout, other_layout(layout, name)))
        for phase in PHASES_EVERY_RANK_PASSES:
            self.assertLessEqual({f"{phase}.enter", f"{phase}.exit"}, set(points))
        self.assertEqual(len(cases), len(points) * (2 if FULL else 1))
        self.all_of(cases)
        self.assertGreaterEqual(len(self.resumed_on), 4, self.resumed_on)

    def test_killed_again_while_it_resumes(self):
        run_dir = self.folder / "twice"
        faults = [
            "point=save.pre_rename;iter=2;nth=2;action=kill9",
            "point=save.unlink;nth=1;action=kill9",
            "point=resume.exit;action=kill9",
            "point=save.post_rename;iter=4;action=kill9",
            "point=evaluate.enter;action=kill9",
        ]
        for fault in faults:
            self.assertEqual(self.start(run_dir, fault=fault).wait().code, 137, fault)
        self.continues_to_gold(run_dir, 2, 1)


class KilledAtRandomMoments(Interrupted):
    def killed_in(self, phase, name, seed):
        """Kills a random rank at a random moment after the phase began; the phase it died in, or None if it lived."""
        generator = random.Random(seed)
        run_dir = self.folder / name
        iteration = generator.choice((2, 4) if phase == "evaluate" else (1, 2, 3, 4))
        layout = tensor, data = generator.choice([one for one in LAYOUTS if one != (1, 1)])
        running = self.start(run_dir, tensor * data, tensor, slow_in(phase, iteration))
        wait_for_phase(running, run_dir, phase, iteration)
        time.sleep(generator.uniform(0, 0.4))
        ranks = running.ranks()
        rank = generator.randrange(tensor * data)
        sent = len(ranks) == tensor * data and kill(ranks[rank])
        result = running.wait()
        self.nothing_runs(running)
        if result.code == 0:
            return None  # it was over before the signal came
        self.assertTrue(sent, f"the run failed before it was killed: {result}")
        self.assertEqual(result.code, 137, result)
        self.assertEqual(run("verify", run_dir).code, 0)
        died_in = phase_of(run_dir)
        self.continues_to_gold(run_dir, *generator.choice([one for one in LAYOUTS if one != layout]))
        return died_in

    def test_sigkill_of_a_random_rank(self):
        """Rounds of two runs side by side, until every phase has its kill and there are as many as promised."""
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)
        generator = random.Random(seed)
        promised = 200 if FULL else 20
        hits = collections.Counter()
        cases = []
        while len(cases) < 3 * promised:
            missing = [phase for phase in SLOW if hits[phase] == 0]
            left = promised - sum(hits.values())
            if not missing and left <= 0:
                break
            # Every phase once at first; then as many as are left at most, so that no run is made in vain.
            phases = missing or [generator.choice(list(SLOW)) for _ in range(min(left, 40))]
            drawn = [(phase, f"random{len(cases) + i}", generator.random()) for i, phase in enumerate(phases)]
            cases += drawn
            done, failures = side_by_side(self.killed_in, drawn)
            self.assertEqual(failures, [], f"seed {seed}\n" + "\n".join(failures))
            hits.update(died_in for _, died_in in done if died_in is not None)
        print(f"{sum(hits.values())} runs were killed: {dict(hits)}", flush=True)
        self.assertGreaterEqual(sum(hits.values()), promised, "too many runs were over before they were killed")
        self.assertEqual([phase for phase in SLOW if hits[phase] == 0], [], f"phases without a kill: {hits}")

    def test_the_launcher_is_killed_and_the_job_is_started_again_at_once(self):
        run_dir = self.folder / "killed"
        running = self.start(run_dir, 2, 1, "point=forward.enter;action=slow:100")
        wait_for(lambda: list(run_dir.glob("ckpt/iter-*")), running)
        kill(running.process.pid, signal.SIGKILL)
        # Ranks may live on for seconds: the next run waits for their lock.
        result = run("run", self.config, "--run-dir", run_dir)
        self.assertNotEqual(running.wait().code, 0)
        self.assertEqual(result.code, 0, result)
        self.nothing_runs(running)
        self.is_gold(run_dir, result)


if __name__ == "__main__":
    main()
