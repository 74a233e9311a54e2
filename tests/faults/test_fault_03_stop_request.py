"""A request to stop (SIGUSR1 to any rank or mpirun, or a STOP file) is obeyed within a micro-batch, or layer by layer
within a layer, with a commit and exit 75.

Asks in every phase while ranks stand still, once by the file, and one rank at a drawn moment; the continued run ends as
the uninterrupted one. A third signal ends a run that waits for ever.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import LAYOUTS, Interrupted, frozen, is_pending, is_stopped, kill, phase_of, wait_for
from killed import SLOW, side_by_side, slow_in, wait_for_phase
from workbench import FULL, main, metrics_of, run, status_of, write_options


class Stops(Interrupted):
    """What the tests below share; has none of its own."""

    def asks(self, running, asked, standing):
        """SIGUSR1 to the process `asked` while the ranks `standing` are frozen; then these go on."""
        kill(asked, signal.SIGUSR1)
        wait_for(lambda: all(is_pending(pid, signal.SIGUSR1) for pid in standing), running)
        for pid in standing:
            kill(pid, signal.SIGCONT)

    def has_stopped(self, run_dir, running, reason):
        self.is_stopped_run(run_dir, running, reason, running.wait(120))
        self.assertFalse((run_dir / "export/exact").exists())

    def is_stopped_run(self, run_dir, running, reason, result):
        self.assertEqual(result.code, 75, result)
        self.assertEqual(result.err.count("espalier: "), 0, result)
        self.nothing_runs(running)
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"], status["reason"]), ("stopped", 75, reason), result)
        self.assertFalse((run_dir / "STOP").exists())
        self.is_at_rest(run_dir, commits_only=False)
        shown = run("status", run_dir, "--exit-code")
        self.assertEqual(shown.code, 75, shown)
        has_commit = any((run_dir / "ckpt").glob("*-*/MANIFEST.json"))
        self.assertIn("espalier resume" if has_commit else "start it again", shown.out)


class Stopped(Stops):
    def test_sigusr1_to_the_launcher_in_every_phase(self):
        cases = [
            ("calibrate", "forward.enter", (2, 1), (1, 1)),
            ("rank", "rank.enter", (1, 2), (2, 1)),
            ("slice", "slice.enter", (2, 1), (1, 2)),
            ("evaluate", "evaluate.enter", (1, 2), (1, 1)),
            ("export", "export.write", (2, 1), (1, 1)),
            ("load", "load.enter", (1, 2), (2, 1)),
            ("save", "save.manifest", (2, 1), (1, 2)),
        ]
        for phase, point, (tensor, data), resumed in cases:
            with self.subTest(phase):
                run_dir = self.folder / phase
                # Rank 0 stands still in the phase until the launcher has handed the signal on.
                running = self.start(run_dir, tensor * data, tensor, f"point={point};rank=0;nth=1;action=stop")
                standing = frozen(running)
                self.assertEqual(phase_of(run_dir), phase)
                self.asks(running, running.process.pid, standing)
                self.has_stopped(run_dir, running, "signal")
                self.continues_to_gold(run_dir, *resumed)

    def test_sigusr1_to_one_rank_at_a_random_moment(self):
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)
        generator = random.Random(seed)
        run_dir = self.folder / "one"
        # Twelve rounds of 0.5 s at the least: a moment of the first second finds the run alive.
        running = self.start(run_dir, 2, 2, "point=forward.enter;action=slow:500")
        wait_for(lambda: phase_of(run_dir) == "calibrate", running)
        time.sleep(generator.uniform(0, 1))
        kill(generator.choice(running.ranks()), signal.SIGUSR1)
        self.has_stopped(run_dir, running, "signal")
        self.continues_to_gold(run_dir, 1, 2)

    def test_sigusr1_to_one_rank_in_drawn_phases(self):
        """A drawn rank of a drawn layout, in a drawn phase and moment."""
        count = 50 if FULL else 2
        seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {seed} (ESPALIER_TEST_SEED repeats it)", flush=True)

        def stopped(name, seed):
            """Whether the run was still there when the signal came."""
            generator = random.Random(seed)
            run_dir = self.folder / name
            phase = generator.choice(list(SLOW))
            iteration = generator.choice((2, 4) if phase == "evaluate" else (1, 2, 3, 4))
            tensor, data = generator.choice(LAYOUTS)
            running = self.start(run_dir, tensor * data, tensor, slow_in(phase, iteration))
            wait_for_phase(running, run_dir, phase, iteration)
            time.sleep(generator.uniform(0, 0.4))
            ranks = running.ranks()
            if ranks:
                kill(generator.choice(ranks), signal.SIGUSR1)
            result = running.wait(120)
            if result.code == 0:
                self.is_gold(run_dir, result)
                return False
            self.is_stopped_run(run_dir, running, "signal", result)
            if (run_dir / "export/exact").exists():  # it was whole before the signal was seen
                self.assertEqual(phase, "export")
                self.succeeds("verify", run_dir / "export/exact", "--deep")
            self.continues_to_gold(run_dir, *generator.choice(LAYOUTS))
            return True

        generator = random.Random(seed)
        done, failures = side_by_side(stopped, [(f"drawn{number}", generator.random()) for number in range(count)])
        self.assertEqual(failures, [], f"seed {seed}\n" + "\n".join(failures))
        self.assertGreaterEqual(sum(found for _, found in done), count // 2, "too many runs were over before the signal came")

    def test_stop_file(self):
        run_dir = self.folder / "file"
        running = self.start(run_dir, 2, 1, "point=forward.enter;rank=0;nth=2;action=stop")
        (rank,) = frozen(running)
        self.assertEqual(run("stop", run_dir).code, 0)
        kill(rank, signal.SIGCONT)
        self.has_stopped(run_dir, running, "STOP file")
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
        self.has_stopped(run_dir, running, "time limit")
        self.continues_to_gold(run_dir, 2, 1)

    def test_stop_before_the_first_commit_loses_nothing_but_time(self):
        run_dir = self.folder / "early"
        running = self.start(run_dir, 1, 1, "point=forward.enter;nth=2;action=stop")
        standing = frozen(running)
        self.asks(running, running.process.pid, standing)
        self.has_stopped(run_dir, running, "signal")
        # `resume` wants a commit; `run` starts anew and says nothing of an error.
        self.assertEqual(list((run_dir / "ckpt").iterdir()), [])
        result = run("resume", run_dir)
        self.assertEqual(result.code, 66, result)
        self.continues_to_gold(run_dir, 1, 1)

    def test_the_third_signal_ends_a_run_that_waits_for_ever(self):
        run_dir = self.folder / "thrice"
        running = self.start(run_dir, 2, 2, "point=forward.enter;rank=1;nth=4;action=stop")
        standing = frozen(running)
        (waiting,) = set(running.ranks()) - set(standing)
        for number in range(3):
            if number > 0:
                time.sleep(2.2)  # signals within two seconds count once
            self.assertEqual(running.process.poll(), None, "two requests wait for the other rank")
            kill(waiting, signal.SIGUSR1)
            wait_for(lambda: waiting not in running.ranks() or not is_pending(waiting, signal.SIGUSR1))
        wait_for(lambda: waiting not in running.ranks())
        for pid in filter(is_stopped, standing):  # a stopped process hears nothing but this
            kill(pid)
        result = running.wait()
        self.assertNotEqual(result.code, 0)
        self.assertIn("three times", result.err)
        self.continues_to_gold(run_dir, 1, 1)


class PausesPasses(Stops):
    """What the tests below share; has none of its own."""

    def stopped_in(self, name, ranks=1, tensor=1, micro_batch=4):
        """A run stopped in its third iteration, when it has seen something of both domains."""
        run_dir = self.folder / name
        fault = f"point=forward.enter;rank=0;iter=3;nth={micro_batch};action=stop"
        running = self.start(run_dir, ranks, tensor, fault)
        standing = frozen(running)
        self.assertEqual(status_of(run_dir)["iteration"], 3)
        self.asks(running, running.process.pid, standing)
        return run_dir, running

    def goes_on(self, name, stopped, resumed):
        # Two data ranks have seen twice as many when the round comes.
        run_dir, running = self.stopped_in(name, stopped[0] * stopped[1], stopped[0], 4 if stopped[1] == 1 else 2)
        self.has_stopped(run_dir, running, "signal")
        self.assertEqual(sorted(p.name for p in (run_dir / "ckpt").glob("*-*")), ["iter-000002", "pass-000003"])
        self.assertEqual(status_of(run_dir)["last_commit"], "pass-000003")
        manifest = json.loads((run_dir / "ckpt/pass-000003/MANIFEST.json").read_text())
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 0, verified)
        self.assertRegex(verified.out, rf"sums after {manifest['pass']['micro_batches']} micro-batch(es)?,")
        result = self.continues_to_gold(run_dir, *resumed)
        self.assertIn("in the middle of its pass", result.text)
        row = metrics_of(run_dir)[3]
        self.assertEqual(row["continued_tokens"], manifest["pass"]["tokens"])
        self.assertTrue(0 < row["continued_tokens"] < row["tokens"], row)


class PausedInputs(PausesPasses):
    """The same with a criterion that sums what it sees on the way forward, and rows of several lengths."""

    change = {"importance": {"criterion": "flap", "normalization": "none"}}

    def test_the_pass_goes_on_with_the_next_micro_batch(self):
        self.goes_on("run", (2, 2), (3, 1))


class PausedMargin(PausesPasses):
    """The same where a sample is an item of several options, and every iteration draws others with other weights."""

    change = {
        "importance": {"criterion": "taylor_gate_sample"},
        "calibration": {
            "domains": [{"name": "a", "tokens": "a.h5"},
                        {"name": "options", "tokens": "options.h5", "objective": "margin", "sequences": 7, "weight": 2.0}],
            "micro_batch_tokens": 24,
            "resample": True,
            "adapt": "loss_gap",
        },
    }

    @classmethod
    def prepare(cls):
        write_options(cls.bench.folder / "options.h5", (3, 2, 4, 2, 5, 2, 3, 2, 2))

    def test_the_pass_goes_on_with_the_next_micro_batch(self):
        self.goes_on("run", (1, 2), (2, 1))


class Paused(PausesPasses):
    """A pass of a gate criterion goes on where it was stopped, on any layout."""

    change = {"importance": {"criterion": "taylor_gate_sample"}, "calibration": {"combine": "weighted_mean"}}

    def test_the_pass_goes_on_with_the_next_micro_batch(self):
        for number, (stopped, resumed) in enumerate((((1, 1), (1, 1)), ((2, 1), (1, 2)), ((1, 2), (2, 2)), ((2, 2), (3, 1)))):
            with self.subTest(stopped=stopped, resumed=resumed):
                self.goes_on(f"{number}", stopped, resumed)

    def test_a_run_stopped_in_its_first_iteration_is_resumed(self):
        run_dir = self.folder / "first"
        running = self.start(run_dir, 1, 1, "point=forward.enter;nth=3;action=stop")
        standing = frozen(running)
        self.asks(running, running.process.pid, standing)
        self.has_stopped(run_dir, running, "signal")
        refused = run("run", self.config, "--run-dir", run_dir, "--resume=never")
        self.assertEqual(refused.code, 73, refused)
        self.assertIn("a paused pass", refused.err)
        resumed = run("resume", run_dir)
        self.assertEqual(resumed.code, 0, resumed)
        self.assertIn("in the middle of its pass", resumed.text)
        self.is_gold(run_dir, resumed)

    def test_a_damaged_pass_is_named_and_done_again(self):
        run_dir, running = self.stopped_in("damaged")
        self.has_stopped(run_dir, running, "signal")
        sums = run_dir / "ckpt/pass-000003/sums.h5"
        content = bytearray(sums.read_bytes())
        content[len(content) // 2] ^= 1
        sums.write_bytes(content)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 65, verified)
        self.assertIn("pass-000003/sums.h5", verified.text)
        result = self.continues_to_gold(run_dir, 1, 1, set_aside=["rejected-pass-000003-0"])
        self.assertIn("pass-000003 is not used", result.text)

    def test_a_pass_of_other_work_is_done_again(self):
        run_dir, running = self.stopped_in("other")
        self.has_stopped(run_dir, running, "signal")
        arguments = ["run", self.config, "--run-dir", run_dir, "--set", "calibration.seed=7", "--allow-change", "calibration.seed"]
        other = ["--set", "importance.criterion=taylor_gate", "--allow-change", "importance.criterion"]
        result = run(*arguments, *other)
        self.assertEqual(result.code, 0, result)
        self.assertIn("of other work", result.text)

    def test_killed_while_a_pass_is_saved(self):
        run_dir = self.folder / "killed"
        fault = "point=forward.enter;iter=3;nth=4;action=stop|point=save.pre_rename;iter=3;nth=1;action=kill9"
        running = self.start(run_dir, 1, 1, fault)
        standing = frozen(running)
        self.asks(running, running.process.pid, standing)
        self.assertEqual(running.wait().code, 137)
        self.continues_to_gold(run_dir, 2, 1)


if __name__ == "__main__":
    main()
