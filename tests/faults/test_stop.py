"""A run that is asked to stop commits, exits with 75 and continues to the end it would have had."""

import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, kill
from workbench import main, run, status_of


class Stopped(Interrupted):
    def until(self, running, condition, timeout=40):
        deadline = time.monotonic() + timeout
        while not condition():
            if running.process.poll() is not None or time.monotonic() > deadline:
                running.kill()
                self.fail(f"the awaited state did not come: {running.result(None)}")
            time.sleep(0.01)

    def phase(self, run_dir):
        return status_of(run_dir)["phase"] if (run_dir / "status.json").exists() else None

    def is_stopped(self, run_dir, running, reason, timeout=30):
        begin = time.monotonic()
        result = running.wait(timeout)
        self.assertEqual(result.code, 75, result)
        self.assertEqual(result.err.count("espalier: "), 0, result)
        self.nothing_runs(running)
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"], status["reason"]), ("stopped", 75, reason), result)
        self.assertFalse((run_dir / "STOP").exists())
        self.assertFalse((run_dir / "export/exact").exists())
        self.is_at_rest(run_dir, commits_only=False)
        shown = run("status", run_dir, "--exit-code")
        self.assertEqual(shown.code, 75, shown)
        has_commit = any((run_dir / "ckpt").glob("iter-*"))
        self.assertIn("espalier resume" if has_commit else "start it again", shown.out)
        return time.monotonic() - begin

    def test_sigusr1_to_the_launcher_in_every_phase(self):
        cases = [
            ("calibrate", "point=forward.enter;action=slow:150", (2, 1), (1, 1)),
            ("evaluate", "point=evaluate.enter;action=slow:1500", (1, 2), (1, 1)),
            ("export", "point=export.write;nth=1;action=slow:2500", (2, 1), (1, 1)),
            ("load", "point=load.enter;action=slow:1500", (1, 2), (2, 1)),
            ("save", "point=save.manifest;action=slow:1500", (2, 1), (1, 2)),
        ]
        for phase, fault, (tensor, data), resumed in cases:
            with self.subTest(phase):
                run_dir = self.folder / phase
                running = self.start(run_dir, tensor * data, tensor, fault)
                self.until(running, lambda: self.phase(run_dir) == phase)  # noqa: B023
                kill(running.process.pid, signal.SIGUSR1)
                self.is_stopped(run_dir, running, "signal")
                self.continues_to_gold(run_dir, *resumed)

    def test_sigusr1_to_one_rank_at_a_random_moment(self):
        seed = int(time.time())
        print(f"seed {seed}", flush=True)
        generator = random.Random(seed)
        run_dir = self.folder / "one"
        running = self.start(run_dir, 2, 2, "point=forward.enter;action=slow:100")
        self.until(running, lambda: self.phase(run_dir) in ("calibrate", "evaluate"))
        time.sleep(generator.uniform(0, 1))
        kill(generator.choice(running.ranks()), signal.SIGUSR1)
        self.is_stopped(run_dir, running, "signal")
        self.continues_to_gold(run_dir, 1, 2)

    def test_stop_file(self):
        run_dir = self.folder / "file"
        running = self.start(run_dir, 2, 1, "point=forward.enter;action=slow:100")
        self.until(running, lambda: self.phase(run_dir) == "calibrate")
        self.assertEqual(run("stop", run_dir).code, 0)
        self.is_stopped(run_dir, running, "STOP file")
        # One that came too late must not stop the next run for ever.
        (run_dir / "STOP").write_text("late")
        result = self.continues_to_gold(run_dir, 2, 1)
        self.assertIn("removed a STOP file", result.text)

    def test_stop_of_what_is_no_run(self):
        result = run("stop", self.folder / "nothing")
        self.assertEqual(result.code, 66, result)
        self.assertFalse((self.folder / "nothing").exists())

    def test_time_limit(self):
        run_dir = self.folder / "hours"
        # Eight micro-batches of 0.4 s in four iterations would take far longer than the limit of 5.4 s.
        limit = 0.0015
        running = self.start(
            run_dir, 1, 1, "point=forward.enter;action=slow:400", "--max-hours", limit
        )
        self.is_stopped(run_dir, running, "time limit")
        self.continues_to_gold(run_dir, 2, 1)

    def test_stop_before_the_first_commit_loses_nothing_but_time(self):
        run_dir = self.folder / "early"
        running = self.start(run_dir, 1, 1, "point=forward.enter;action=slow:200")
        self.until(running, lambda: self.phase(run_dir) == "calibrate")
        kill(running.process.pid, signal.SIGUSR1)
        self.is_stopped(run_dir, running, "signal")
        # `resume` wants a commit; `run` starts anew and says nothing of an error.
        result = run("resume", run_dir)
        if not list((run_dir / "ckpt").glob("iter-*")):
            self.assertEqual(result.code, 66, result)
        self.continues_to_gold(run_dir, 1, 1)


if __name__ == "__main__":
    main()
