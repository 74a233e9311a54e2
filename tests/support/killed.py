"""What the tests that kill a run share: fault points from the program's own list, and continuing on another layout."""

import concurrent.futures
import re

from interrupted import Interrupted, phase_of, wait_for
from workbench import run, status_of

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


def listed_points():
    """{name of a fault point: [special actions]}"""
    result = run("doctor", "--list-faults")
    if result.code != 0:
        raise AssertionError(result)
    points = {}
    for line in result.out.splitlines():
        words, _, special = line.partition("; also ")
        name = words.split()[0]
        if name in points:
            raise AssertionError(f"{name} is listed twice")
        points[name] = special.split(", ") if special else []
    return points


def side_by_side(call, cases):
    """Calls call(*case) for all cases, two at once; [(case, result)] and the messages of those that failed."""
    done, failures = [], []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {pool.submit(call, *case): case for case in cases}
        for future in concurrent.futures.as_completed(futures):
            case = futures[future]
            try:
                done.append((case, future.result()))
            except AssertionError as error:
                failures.append(f"{case[0]}: {error}")
    return done, failures


def slow_in(phase, iteration):
    """A fault that makes this phase of this iteration last."""
    return SLOW[phase].format(at=f"iter={iteration};")


def wait_for_phase(running, run_dir, phase, iteration):
    of_no_iteration = phase in ("load", "export")

    def begun():
        return phase_of(run_dir) == phase and (of_no_iteration or status_of(run_dir)["iteration"] == iteration)

    wait_for(begun, running)


class Killed(Interrupted):
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
        done, failures = side_by_side(self.killed_and_resumed, cases)
        failures += [f"{case[0]}: the run was never killed" for case, result in done if result is None]
        self.assertEqual(failures, [], "\n".join(failures))
