"""One rank alone fails, at every point that the program knows: all ranks end, soon, with one code and one message.

A rank that throws between two collectives in which its peers wait would leave them waiting for ever.
"""

import concurrent.futures
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import SMALL
from workbench import FULL, Case, main, run, status_of

LAYOUTS = [(2, 1), (1, 2), (3, 1), (1, 3)]  # tensor, data


def listed_points():
    """[(name, [special actions])]"""
    result = run("doctor", "--list-faults")
    if result.code != 0:
        raise AssertionError(result)
    points = []
    for line in result.out.splitlines():
        words, _, special = line.partition("; also ")
        points.append((words.split()[0], special.split(", ") if special else []))
    return points


class OneRankAlone(Case):
    change = {}

    def fails(self, name, config, layout, fault, code, says):
        tensor, data = layout
        run_dir = self.folder / re.sub(r"\W+", "-", name)
        arguments = ["run", config, "--run-dir", run_dir, "--tensor", tensor]
        result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": fault}, timeout=60)
        self.assertEqual(result.code, code, f"{name}: {result}")
        self.assertRegex(result.err, says, name)
        blocks = re.findall(r"^espalier: .*\(exit \d+", result.err, re.M)
        self.assertEqual(len(blocks), 1, f"{name}: one error, said once: {result}")
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"]), ("failed", code), f"{name}: {status}")
        self.assertRegex(status["reason"], says, name)

    def all_of(self, cases):
        failures = []
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = {pool.submit(self.fails, *case): case for case in cases}
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except AssertionError as error:
                    failures.append(f"{futures[future][0]}: {error}")
        self.assertEqual(failures, [], "\n".join(failures))

    def test_an_exception_at_every_point(self):
        """By default every point on one layout and rank, in turn; the long form has all of them."""
        config = self.bench.config(**SMALL)
        cases = []
        for number, (point, special) in enumerate(listed_points()):
            only_root = point.partition(".")[0] in ("save", "export") and not point.endswith((".enter", ".exit"))
            layouts = LAYOUTS if FULL else [LAYOUTS[number % len(LAYOUTS)]]
            for layout in layouts:
                ranks = layout[0] * layout[1]
                for rank in [0] if only_root else range(ranks) if FULL else [number % ranks]:
                    # Old commits are removed from the second iteration on, unfinished exports never.
                    if point == "export.unlink":
                        continue
                    name = f"{point} rank {rank} of {layout}"
                    cases.append((name, config, layout, f"point={point};rank={rank};action=throw", 70,
                                  f"fault injected at {point}"))
        self.assertGreater(len(cases), 35)
        self.all_of(cases)

    def test_memory_that_runs_out_on_one_rank(self):
        config = self.bench.config(**SMALL)
        points = ["load.enter", "forward.enter", "backward.exit", "reduce.enter", "slice.enter", "save.write"]
        cases = [(f"{p} memory", config, LAYOUTS[n % 2], f"point={p};rank={0 if p == 'save.write' else n % 2};action=alloc-fail",
                  69, "memory ran out") for n, p in enumerate(points)]
        self.all_of(cases)

    def test_a_value_that_is_not_finite_on_one_rank(self):
        """Where a point can make one, under both reductions: named, agreed, and nothing waits."""
        configs = [self.bench.config(name="gradients", **SMALL),
                   self.bench.config(name="scores", **SMALL, importance={"reduction": "scores"}),
                   self.bench.config(name="gate", **SMALL, importance={"criterion": "taylor_gate"})]
        cases = []
        points = [p for p, special in listed_points() if "nan" in special]
        self.assertGreaterEqual(len(points), 2)
        for number, point in enumerate(points):
            for which, config in enumerate(configs):
                if point == "weight.gradient" and config.stem == "gate":
                    continue  # the gates need none
                for layout in LAYOUTS if FULL else [LAYOUTS[(number + which) % len(LAYOUTS)]]:
                    rank = (number + 1) % (layout[0] * layout[1])
                    cases.append((f"{point} {config.stem} {layout}", config, layout,
                                  f"point={point};rank={rank};iter=1;nth=1;action=nan", 65,
                                  "(NaN or infinite|not finite)"))
        self.all_of(cases)

    def test_what_could_do_nothing_is_refused(self):
        config = self.bench.config(**SMALL)
        for point, special in listed_points():
            if "nan" in special:
                continue
            break
        for fault in (f"point={point};action=nan", "point=load.enter;rank=2;action=throw",
                      "point=save.write;rank=1;action=throw", "point=load.enter;nth=0;action=kill9"):
            with self.subTest(fault):
                result = run("run", config, "--run-dir", self.folder / "never", ranks=2,
                             extra={"ESPALIER_FAULT": fault})
                self.assertEqual(result.code, 64, result)
                self.assertIn("has no effect", result.err)
                self.assertFalse((self.folder / "never").exists())


if __name__ == "__main__":
    main()
