"""When one rank alone fails, all ranks end in seconds with one message and its exit code, and none waits for it for
ever.

One rank throws at every fault point that the program knows, on layouts of two and three ranks, also between two
collectives in which its peers wait.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import SMALL
from killed import listed_points
from lone_failure import LAYOUTS, OneRankAlone
from spoilt import BEGUN, Spoilt
from workbench import FULL, main, run


class ThrowsAlone(OneRankAlone):
    def test_an_exception_at_every_point(self):
        """By default every point on one layout and rank, in turn; the long form has all of them."""
        whole = self.bench.config(**SMALL, refit={"enabled": True})
        layers = self.bench.config("layers", **SMALL, execution={"order": "layer_major", "boundaries": "files"})
        cases = []
        for number, point in enumerate(listed_points()):
            if point == "pause.recall":  # see below
                continue
            config = layers if point.startswith(("scratch.", "pause.")) else whole
            asked = "point=reduce.exit;nth=2;action=sigusr1|" if point.startswith("pause.") else ""
            only_root = point.partition(".")[0] in ("save", "export") and not point.endswith((".enter", ".exit"))
            layouts = LAYOUTS if FULL else [LAYOUTS[number % len(LAYOUTS)]]
            for layout in layouts:
                ranks = layout[0] * layout[1]
                for rank in [0] if only_root else range(ranks) if FULL else [number % ranks]:
                    # Old commits are removed from the second iteration on; unfinished exports and stale refits never.
                    if point in ("export.unlink", "refit.unlink"):
                        continue
                    name = f"{point} rank {rank} of {layout}"
                    cases.append((name, config, layout, f"{asked}point={point};rank={rank};action=throw", 70,
                                  f"fault injected at {point}"))
        self.assertGreater(len(cases), 35)
        self.all_of(cases)

    def test_an_exception_where_a_paused_pass_is_read_again(self):
        config = self.bench.config("paused", **SMALL, execution={"order": "layer_major"})
        for tensor, data in LAYOUTS:
            run_dir = self.folder / f"paused-{tensor}x{data}"
            arguments = ["run", config, "--run-dir", run_dir, "--tensor", tensor]
            result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": "point=reduce.exit;nth=2;action=sigusr1"})
            self.assertEqual(result.code, 75, result)
            fault = f"point=pause.recall;rank={tensor * data - 1};action=throw"
            result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": fault}, timeout=60)
            self.assertEqual(result.code, 70, result)
            self.assertEqual(result.err.count("fault injected at pause.recall"), 1, result)
            self.assertTrue((run_dir / "ckpt/pass-000001/sums.h5").exists())

    def test_what_could_do_nothing_is_refused(self):
        config = self.bench.config(**SMALL)
        point = next(name for name, special in listed_points().items() if "nan" not in special)
        for fault in (f"point={point};action=nan", "point=load.enter;rank=2;action=throw",
                      "point=save.write;rank=1;action=throw", "point=load.enter;nth=0;action=kill9"):
            with self.subTest(fault):
                result = run("run", config, "--run-dir", self.folder / "never", ranks=2,
                             extra={"ESPALIER_FAULT": fault})
                self.assertEqual(result.code, 64, result)
                self.assertIn("has no effect", result.err)
                self.assertFalse((self.folder / "never").exists())


def throw_between_collectives(row):
    """The other tensor ranks wait in a sum that will not come."""
    row.arguments = ["--tensor", "RANKS"]
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=throw"}


def throw_on_one_rank(row):
    row.extra = {"ESPALIER_FAULT": "point=slice.enter;rank=RANK;iter=1;action=throw"}


TABLE = [
    (throw_between_collectives, 70, ["fault injected at backward.enter", "RANK"], BEGUN),
    (throw_on_one_rank, 70, ["fault injected at slice.enter", "RANK"], BEGUN),
]


class ThrowsInARow(Spoilt):
    def test_table(self):
        self.every_row(TABLE)


if __name__ == "__main__":
    main()
