"""The fault points that the program lists are those that a run passes: one that no run passes fails the test."""

import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import SMALL, frozen, kill
from killed import listed_points
from workbench import Case, Running, main, run


class EveryPointIsPassed(Case):
    def test_no_listed_point_is_dead(self):
        points = listed_points()
        self.assertGreater(len(points), 30)
        trace = self.folder / "trace"
        extra = {"ESPALIER_FAULT_TRACE": str(trace)}
        config = self.bench.config(**SMALL, refit={"enabled": True},
                                   execution={"order": "layer_major", "boundaries": "files"})
        run_dir = self.folder / "run"
        arguments = ["run", config, "--run-dir", run_dir]
        # Paused between two layers.
        result = run(*arguments, extra={**extra, "ESPALIER_FAULT": "point=reduce.exit;nth=1;action=sigusr1"})
        self.assertEqual(result.code, 75, result)
        # Stopped while it exports, so that an unfinished export is removed; then completed.
        running = Running(arguments, 1, {**extra, "ESPALIER_FAULT": "point=export.write;nth=1;action=stop"})
        (rank,) = frozen(running)
        self.assertEqual(len(list(run_dir.glob("export/exact.tmp-*"))), 1)
        self.assertEqual(run("stop", run_dir).code, 0)
        kill(rank, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(list((run_dir / "export").iterdir()), [], "an unfinished export is left")
        self.succeeds(*arguments, extra=extra)
        # Other settings: what is stale is removed.
        self.succeeds(*arguments, "--set", "refit.ridge=0.1", extra=extra)
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


if __name__ == "__main__":
    main()
