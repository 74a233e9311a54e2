"""A run that is asked to stop commits, exits with 75 and continues to the end it would have had."""

import json
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, kill
from workbench import main, metrics_of, run, status_of


class Stops(Interrupted):
    """What the tests below share; has none of its own."""

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
        has_commit = any((run_dir / "ckpt").glob("*-*/MANIFEST.json"))
        self.assertIn("espalier resume" if has_commit else "start it again", shown.out)
        return time.monotonic() - begin


class Stopped(Stops):
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

    def test_the_third_signal_ends_a_run_that_waits_for_ever(self):
        run_dir = self.folder / "thrice"
        running = self.start(run_dir, 2, 2, "point=forward.enter;rank=1;nth=4;action=stop")
        self.until(running, lambda: self.phase(run_dir) == "calibrate")
        time.sleep(1)
        waiting = running.ranks()[0]
        for _ in range(3):
            self.assertEqual(running.process.poll(), None, "two requests wait for the other rank")
            kill(waiting, signal.SIGUSR1)
            time.sleep(2.2)
        for pid in running.ranks():  # a stopped process hears nothing but this
            kill(pid)
        result = running.wait(30)
        self.assertNotEqual(result.code, 0)
        self.assertIn("three times", result.err)
        self.continues_to_gold(run_dir, 1, 1)


class Paused(Stops):
    """A pass of a gate criterion goes on where it was stopped, on any layout."""

    change = {"importance": {"criterion": "taylor_gate_sample"}, "calibration": {"combine": "weighted_mean"}}

    def stopped_in(self, name, ranks=1, tensor=1, micro_batch=4):
        """A run stopped in its third iteration, in the second domain."""
        run_dir = self.folder / name
        fault = f"point=forward.enter;iter=3;nth={micro_batch};action=slow:2500"
        running = self.start(run_dir, ranks, tensor, fault)
        self.until(running, lambda: status_of(run_dir)["iteration"] == 3 if self.phase(run_dir) else False)
        time.sleep(1)
        kill(running.process.pid, signal.SIGUSR1)
        return run_dir, running

    def test_the_pass_goes_on_with_the_next_micro_batch(self):
        for number, (stopped, resumed) in enumerate((((1, 1), (1, 1)), ((2, 1), (1, 2)), ((1, 2), (2, 2)), ((2, 2), (3, 1)))):
            with self.subTest(stopped=stopped, resumed=resumed):
                # Two data ranks have seen twice as many when the round comes.
                run_dir, running = self.stopped_in(f"{number}", stopped[0] * stopped[1], stopped[0], 4 if stopped[1] == 1 else 3)
                self.is_stopped(run_dir, running, "signal")
                self.assertEqual(sorted(p.name for p in (run_dir / "ckpt").glob("*-*")), ["iter-000002", "pass-000003"])
                self.assertEqual(status_of(run_dir)["last_commit"], "pass-000003")
                manifest = json.loads((run_dir / "ckpt/pass-000003/MANIFEST.json").read_text())
                verified = run("verify", run_dir)
                self.assertEqual(verified.code, 0, verified)
                self.assertIn(f"sums after {manifest['pass']['micro_batches']} micro-batches", verified.out)
                result = self.continues_to_gold(run_dir, *resumed)
                self.assertIn("in the middle of its pass", result.text)
                row = metrics_of(run_dir)[3]
                self.assertEqual(row["continued_tokens"], manifest["pass"]["tokens"])
                self.assertTrue(0 < row["continued_tokens"] < row["tokens"], row)

    def test_a_run_stopped_in_its_first_iteration_is_resumed(self):
        run_dir = self.folder / "first"
        running = self.start(run_dir, 1, 1, "point=forward.enter;nth=3;action=slow:2500")
        self.until(running, lambda: self.phase(run_dir) == "calibrate")
        time.sleep(1)
        kill(running.process.pid, signal.SIGUSR1)
        self.is_stopped(run_dir, running, "signal")
        refused = run("run", self.config, "--run-dir", run_dir, "--resume=never")
        self.assertEqual(refused.code, 73, refused)
        self.assertIn("a paused pass", refused.err)
        resumed = run("resume", run_dir)
        self.assertEqual(resumed.code, 0, resumed)
        self.assertIn("in the middle of its pass", resumed.text)
        self.is_gold(run_dir, resumed)

    def test_a_damaged_pass_is_named_and_done_again(self):
        run_dir, running = self.stopped_in("damaged")
        self.is_stopped(run_dir, running, "signal")
        sums = run_dir / "ckpt/pass-000003/sums.h5"
        content = bytearray(sums.read_bytes())
        content[len(content) // 2] ^= 1
        sums.write_bytes(content)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 65, verified)
        self.assertIn("pass-000003/sums.h5", verified.text)
        result = self.continues_to_gold(run_dir, 1, 1)
        self.assertIn("pass-000003 is not used", result.text)

    def test_a_pass_of_other_work_is_done_again(self):
        run_dir, running = self.stopped_in("other")
        self.is_stopped(run_dir, running, "signal")
        arguments = ["run", self.config, "--run-dir", run_dir, "--set", "calibration.seed=7", "--allow-change", "calibration.seed"]
        other = ["--set", "importance.criterion=taylor_gate", "--allow-change", "importance.criterion"]
        result = run(*arguments, *other)
        self.assertEqual(result.code, 0, result)
        self.assertIn("of other work", result.text)

    def test_killed_while_a_pass_is_saved(self):
        run_dir = self.folder / "killed"
        fault = "point=forward.enter;iter=3;nth=4;action=slow:2500|point=save.pre_rename;iter=3;nth=1;action=kill9"
        running = self.start(run_dir, 1, 1, fault)
        self.until(running, lambda: status_of(run_dir)["iteration"] == 3 if self.phase(run_dir) else False)
        time.sleep(1)
        kill(running.process.pid, signal.SIGUSR1)
        self.assertEqual(running.wait(30).code, 137)
        self.continues_to_gold(run_dir, 2, 1)


if __name__ == "__main__":
    main()
