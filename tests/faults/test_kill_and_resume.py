"""A run that is killed anywhere continues on any other layout to the end it would have had.

The fault points come from the program's own list: one that no run passes fails the test.
"""

import collections
import concurrent.futures
import os
import pathlib
import random
import re
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import LAYOUTS, SMALL, Interrupted, frozen, kill, other_layout, phase_of, wait_for
from workbench import FULL, Case, Running, main, run, status_of

PHASES_EVERY_RANK_PASSES = ("load", "calibrate", "forward", "backward", "reduce", "rank", "slice", "evaluate", "resume")


def listed_points():
    result = run("doctor", "--list-faults")
    if result.code != 0:
        raise AssertionError(result)
    return [line.split()[0] for line in result.out.splitlines()]


class EveryPointIsPassed(Case):
    def test_no_listed_point_is_dead(self):
        points = listed_points()
        self.assertGreater(len(points), 30)
        self.assertEqual(len(points), len(set(points)))
        trace = self.folder / "trace"
        extra = {"ESPALIER_FAULT_TRACE": str(trace)}
        config = self.bench.config(**SMALL)
        run_dir = self.folder / "run"
        # Stopped while it exports, so that an unfinished export is removed; then completed.
        arguments = ["run", config, "--run-dir", run_dir]
        running = Running(arguments, 1, {**extra, "ESPALIER_FAULT": "point=export.write;nth=1;action=stop"})
        (rank,) = frozen(running)
        self.assertEqual(len(list(run_dir.glob("export/exact.tmp-*"))), 1)
        self.assertEqual(run("stop", run_dir).code, 0)
        kill(rank, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(list((run_dir / "export").iterdir()), [], "an unfinished export is left")
        self.succeeds(*arguments, extra=extra)
        passed = set(trace.read_text().split())
        self.assertEqual(sorted(set(points) - passed), [], "listed, and never passed")
        self.assertEqual(sorted(passed - set(points)), [], "passed, and not listed")

    def test_unknown_points_and_actions_are_refused(self):
        for fault, word in [
            ("point=save.pre_renam;action=kill9", "save.pre_rename"),
            ("point=save.enter;action=explode", "kill9"),
            ("point=save.enter", "has no action"),
        ]:
            with self.subTest(fault):
                arguments = ["run", self.bench.config(), "--run-dir", self.folder / "never"]
                result = run(*arguments, extra={"ESPALIER_FAULT": fault})
                self.assertEqual(result.code, 64, result)
                self.assertIn(word, result.err)
                self.assertFalse((self.folder / "never").exists())


class KilledAtFaultPoints(Interrupted):
    def setUp(self):
        super().setUp()
        self.resumed_on = set()

    def killed_and_resumed(self, name, fault, layout, resumed):
        """Runs `layout` = (tensor, data) into the fault, continues as `resumed`."""
        tensor, data = layout
        run_dir = self.folder / re.sub(r"\W+", "-", name)
        running = self.start(run_dir, tensor * data, tensor, fault)
        result = running.wait()
        if result.code == 0:
            return None
        self.nothing_runs(running)
        # Any other end than the armed one would be a failure of the run, not a kill. mpirun reports the same code.
        self.assertEqual(result.code, 137, result)
        self.assertNotEqual(layout, resumed, name)
        self.resumed_on.add(resumed)
        verified = run("verify", run_dir)
        # Before the first moment of a run directory there is nothing to verify.
        if (run_dir / "config.resolved.yaml").exists():
            self.assertEqual(verified.code, 0, f"{name}: {verified}")
        self.assertFalse((run_dir / "export/exact").exists() and "post_rename" not in name and "fsync_dir" not in name
                         and "export.exit" not in name, name)
        self.continues_to_gold(run_dir, *resumed)
        return result

    def all_of(self, cases):
        """Cases side by side; (name, fault, layout, resumed) each."""
        failures = []
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = {pool.submit(self.killed_and_resumed, *case): case for case in cases}
            for future in concurrent.futures.as_completed(futures):
                case = futures[future]
                try:
                    if future.result() is None:
                        failures.append(f"{case[0]}: the run was never killed")
                except AssertionError as error:
                    failures.append(f"{case[0]}: {error}")
        self.assertEqual(failures, [], "\n".join(failures))

    def test_every_phase_on_either_rank(self):
        cases = []
        for number, point in enumerate(p for p in listed_points() if p.split(".")[0] in PHASES_EVERY_RANK_PASSES):
            at = "" if point.split(".")[0] in ("load", "resume") else "iter=2;"
            for rank in (0, 1) if FULL else (number % 2,):
                layout = [(2, 1), (1, 2)][(number // 2) % 2]
                name = f"{point} on rank {rank}"
                fault = f"point={point};rank={rank};{at}action=kill9"
                cases.append((name, fault, layout, other_layout(layout, name)))
        self.assertEqual(len(cases), 2 * len(PHASES_EVERY_RANK_PASSES) * (2 if FULL else 1))
        self.all_of(cases)
        self.assertGreaterEqual(len(self.resumed_on), 4, self.resumed_on)

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

    def test_every_call_of_the_export(self):
        cases = []
        for point in (p for p in listed_points() if p.startswith("export.")):
            if point == "export.unlink":  # only an export that fails removes files
                fault = f"point=export.fsync;nth=2;action=errno:EIO|point={point};nth=2;action=kill9"
                cases.append((point, fault, (1, 1), other_layout((1, 1), point)))
                continue
            nth = (1,) if point in ("export.enter", "export.exit", "export.pre_rename", "export.post_rename") else (1, 4)
            nth = (1, 2) if point == "export.fsync_dir" else nth
            nth = (1,) if point == "export.flush" else nth
            for n in nth:
                name = f"{point} {n}"
                cases.append((name, f"point={point};nth={n};action=kill9", (1, 1), other_layout((1, 1), name)))
        self.all_of(cases)

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
    # What makes a phase last, so that a drawn moment falls into it and not into the start of processes.
    SLOW = {
        "load": "point=load.enter;action=slow:800",
        "calibrate": "point=forward.enter;{at}action=slow:200",
        "rank": "point=rank.enter;{at}action=slow:800",
        "slice": "point=slice.enter;{at}action=slow:800",
        "save": "point=save.manifest;{at}action=slow:800",
        "evaluate": "point=evaluate.enter;{at}action=slow:800",
        "export": "point=export.write;nth=1;action=slow:800",
    }

    def killed_in(self, phase, run_dir, generator):
        """Kills a random rank at a random moment after the phase began; the phase it died in, or None if it lived."""
        iteration = generator.choice((2, 4) if phase == "evaluate" else (1, 2, 3, 4))
        tensor, data = generator.choice([(2, 1), (1, 2), (2, 2)])
        running = self.start(run_dir, tensor * data, tensor, self.SLOW[phase].format(at=f"iter={iteration};"))
        of_no_iteration = phase in ("load", "export")

        def begun():
            return phase_of(run_dir) == phase and (of_no_iteration or status_of(run_dir)["iteration"] == iteration)

        wait_for(begun, running)
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
        layout = (tensor, data)
        self.continues_to_gold(run_dir, *generator.choice([one for one in LAYOUTS if one != layout]))
        return died_in

    def test_sigkill_of_a_random_rank(self):
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)
        generator = random.Random(seed)
        promised = (3 if FULL else 1) * len(self.SLOW)
        hits = collections.Counter()
        for number in range(3 * promised):
            missing = [phase for phase in self.SLOW if hits[phase] == 0]
            if not missing and sum(hits.values()) >= promised:
                break
            phase = missing[0] if missing else generator.choice(list(self.SLOW))
            with self.subTest(seed=seed, number=number, phase=phase):
                died_in = self.killed_in(phase, self.folder / f"random{number}", generator)
                if died_in is not None:
                    hits[died_in] += 1
        print(f"{sum(hits.values())} runs were killed: {dict(hits)}", flush=True)
        self.assertGreaterEqual(sum(hits.values()), promised, "too many runs were over before they were killed")
        self.assertEqual([phase for phase in self.SLOW if hits[phase] == 0], [], f"phases without a kill: {hits}")

    def test_the_launcher_dies_and_the_job_is_started_again_at_once(self):
        for number, name in [(signal.SIGKILL, "killed"), (signal.SIGTERM, "terminated")]:
            with self.subTest(name):
                run_dir = self.folder / name
                running = self.start(run_dir, 2, 1, "point=forward.enter;action=slow:100")
                wait_for(lambda: list(run_dir.glob("ckpt/iter-*")), running)  # noqa: B023
                kill(running.process.pid, number)
                # Ranks may live on for seconds: the next run waits for their lock.
                result = run("run", self.config, "--run-dir", run_dir)
                self.assertNotEqual(running.wait().code, 0)
                self.assertEqual(result.code, 0, result)
                self.nothing_runs(running)
                self.is_gold(run_dir, result)


if __name__ == "__main__":
    main()
