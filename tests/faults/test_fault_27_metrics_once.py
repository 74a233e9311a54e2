"""metrics.jsonl has each iteration exactly once after any interruption: what lies beyond the commit taken is cut, as a
whole.

Runs eight iterations; loses the commit of the seventh after its line was written, and kills the process around that
line's rename and around the cut.
"""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from killed import side_by_side
from traced import calls_in, require_strace, traced
from workbench import Running, digest_of, main, metrics_of, run, weights_of

STEPS = 8


class MetricsOnce(Interrupted):
    change = {"prune": {"iterations": STEPS}, "evaluation": {"every": 1}, "checkpoint": {"keep_last": 2}}

    def is_gold(self, run_dir, result=None, set_aside=()):
        rows = metrics_of(run_dir)
        self.assertEqual([row["iteration"] for row in rows], list(range(STEPS + 1)), "one row per iteration")
        gold = metrics_of(self.class_folder / "gold")
        for row, other in zip(rows, gold, strict=True):
            for key in ("iteration", "target", "loss", "perplexity", "removed_heads", "removed_channels"):
                if key in other:
                    self.assertEqual(row.get(key), other[key], f"{key} of iteration {row['iteration']}")
        self.assertEqual(digest_of(run_dir), self.gold["digest"], result)
        self.assertEqual(weights_of(run_dir / "export/exact"), self.gold["weights"], result)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 0, verified)
        self.is_at_rest(run_dir, set_aside=set_aside)

    def killed_in_7(self, run_dir, fault, prefix=()):
        running = Running(["run", self.config, "--run-dir", run_dir], 1, {"ESPALIER_FAULT": fault}, prefix)
        result = running.wait()
        self.assertEqual(result.code, 137, result)

    def test_metrics_of_7_and_a_commit_of_6(self):
        run_dir = self.folder / "seven"
        self.killed_in_7(run_dir, "point=forward.enter;iter=8;action=kill9")
        self.assertEqual([row["iteration"] for row in metrics_of(run_dir)], list(range(8)))
        path = run_dir / "ckpt/iter-000007/state.h5"
        path.write_bytes(path.read_bytes()[:-1])
        result = self.continues_to_gold(run_dir, set_aside=["rejected-iter-000007-0"])
        self.assertIn("continuing with iteration 7", result.text)

    def test_lines_that_others_left_behind(self):
        """The seventh twice, and one of an iteration that never was: only those of the commit taken stay."""
        run_dir = self.folder / "twice"
        self.killed_in_7(run_dir, "point=rank.enter;iter=7;action=kill9")
        path = run_dir / "metrics.jsonl"
        last = json.loads(path.read_text().splitlines()[-1])
        self.assertEqual(last["iteration"], 6)
        with open(path, "a") as file:
            for iteration in (7, 7, 8):
                file.write(json.dumps({**last, "iteration": iteration}) + "\n")
        self.continues_to_gold(run_dir)

    def test_killed_around_the_line_of_7(self):
        moments = (("save.exit", 7), ("evaluate.enter", 7), ("evaluate.exit", 7), ("calibrate.enter", 8))
        cases = [(point, f"point={point};iter={iteration};action=kill9") for point, iteration in moments]

        def one(name, fault):
            self.killed_in_7(self.folder / name, fault)
            self.continues_to_gold(self.folder / name)

        _, failures = side_by_side(one, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_killed_at_every_rename_of_the_cut(self):
        """The start that cuts is killed at each rename that it makes until the next line is written."""
        require_strace(self)
        begun = self.folder / "begun"
        self.killed_in_7(begun, "point=forward.enter;iter=8;action=kill9")
        (begun / "ckpt/iter-000007").rename(begun / "ckpt/.trash-000007")
        log = self.folder / "log"
        whole = self.folder / "whole"
        shutil.copytree(begun, whole)
        self.killed_in_7(whole, "point=forward.enter;iter=7;action=kill9", traced(log, "rename"))
        renames = [text for call, text in calls_in(log) if call == "rename"]
        of_metrics = [number for number, text in enumerate(renames, 1) if "/metrics.jsonl" in text]
        self.assertEqual(len(of_metrics), 1, f"the cut is one rename: {renames}")
        for number in (of_metrics[0], of_metrics[0] + 1):
            run_dir = self.folder / f"cut{number}"
            shutil.copytree(begun, run_dir)
            self.killed_in_7(run_dir, "point=forward.enter;iter=7;action=kill9",
                             traced("/dev/null", "rename", f"rename:signal=KILL:when={number}"))
            rows = [row["iteration"] for row in metrics_of(run_dir)]
            self.assertEqual(rows, list(range(8 if number == of_metrics[0] else 7)))
            self.continues_to_gold(run_dir)


if __name__ == "__main__":
    main()
