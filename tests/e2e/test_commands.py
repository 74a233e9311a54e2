"""What a person sees and types: status and stop, streams that end, the forms of the log, options, the examples of --help."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import PROGRAM, ROOT, Case, Running, environment, main, metrics_of, run, status_of, write_tokens

COMMANDS = ("run", "resume", "plan", "score", "eval", "export", "inspect", "config", "verify", "status", "stop", "doctor", "bench")
EXPORT = {"export": [{"format": "exact", "path": "export/exact"}]}
SLOW = "point=forward.enter;action=slow:300"


def shell(line, **options):
    """A line of shell in which $E is the program."""
    extra = {"E": PROGRAM, **options.pop("extra", {})}
    done = subprocess.run(
        ["bash", "-c", line], env=environment(extra), capture_output=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )
    return done.returncode, done.stdout.decode(errors="backslashreplace"), done.stderr.decode(errors="backslashreplace")


def blocks(text):
    return re.findall(r"^espalier: ", text, re.MULTILINE)


class Runs(Case):
    """Has a finished run and waits for moments of others."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config(**EXPORT)
        cls.done = cls.class_folder / "done"
        result = run("run", cls.config, "--run-dir", cls.done)
        if result.code != 0:
            raise AssertionError(result)
        cls.done_text = result

    def until(self, condition, running, timeout=120):
        deadline = time.monotonic() + timeout
        while not condition():
            if running.process.poll() is not None or time.monotonic() > deadline:
                running.kill()
                self.fail(f"the awaited state did not come: {running.result(None)}")
            time.sleep(0.01)

    def start(self, run_dir, fault=SLOW, state="running"):
        running = Running(["run", self.config, "--run-dir", run_dir], extra={"ESPALIER_FAULT": fault})
        self.addCleanup(lambda: running.process.poll() is None and running.kill())
        if state:
            self.until(lambda: (run_dir / "status.json").exists() and status_of(run_dir)["state"] == state, running)
        return running

    def copy(self, name):
        return pathlib.Path(shutil.copytree(self.done, self.folder / name))


class StopAndStatus(Runs):
    def at_rest(self, run_dir, state, code):
        """`stop` refuses and leaves nothing, `status` tells the state and its code."""
        stopped = run("stop", run_dir)
        self.assertEqual(stopped.code, 66, stopped)
        self.assertIn(state, stopped.err)
        self.assertEqual(stopped.out, "")
        self.assertEqual([p.name for p in run_dir.glob("*STOP*")], [])
        shown = run("status", run_dir, "--exit-code")
        self.assertEqual(shown.code, code, shown)
        self.assertTrue(shown.out.startswith(state), shown)
        self.assertEqual(shown.out.count("\n"), 1, shown)
        return shown.out

    def test_finished(self):
        line = self.at_rest(self.done, "finished", 0)
        for words in ("39.3%", "of structures removed", str(self.done / "export/exact"), "exit 0"):
            self.assertIn(words, line)
        self.assertNotIn("()", line)

    def test_failed(self):
        run_dir = self.folder / "failed"
        result = run("run", self.config, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=rank.enter;iter=3;action=throw"})
        self.assertEqual(result.code, 70, result)
        line = self.at_rest(run_dir, "failed 70", 70)
        for words in ("rank.enter", "iter 3/4", "iter-000002", f"espalier resume {run_dir}"):
            self.assertIn(words, line)

    def test_failed_for_several_reasons_shows_the_first(self):
        run_dir = self.copy("several")
        status = {**status_of(run_dir), "state": "failed", "exit_code": 65, "reason": "first reason\nsecond reason"}
        (run_dir / "status.json").write_text(json.dumps(status))
        line = self.at_rest(run_dir, "failed 65", 65)
        self.assertIn("first reason", line)
        self.assertNotIn("second", line)

    def test_stopped_and_dead(self):
        for name, number, state, code in (("stopped", signal.SIGUSR1, "stopped 75", 75), ("dead", signal.SIGKILL, "dead since", 76)):
            run_dir = self.folder / name
            running = self.start(run_dir)
            self.until(lambda: status_of(run_dir)["last_commit"], running)  # noqa: B023
            os.kill(running.ranks()[0], number)
            running.wait()
            self.assertIn("espalier resume", self.at_rest(run_dir, state, code))

    def test_what_is_no_run(self):
        empty = self.folder / "empty"
        empty.mkdir()
        for path in (empty, self.folder / "none", self.config):
            for command in ("stop", "status"):
                result = run(command, path)
                self.assertEqual(result.code, 66, result)
                self.assertIn("  do ", result.err)
        self.assertEqual(list(empty.iterdir()), [])

    def test_starting(self):
        """The lock is held and the status is not written, or is that of the process before."""
        for run_dir in (self.folder / "new", self.copy("again")):
            if run_dir.exists():
                shutil.rmtree(run_dir / "export")
                time.sleep(1.1)  # times are told to the second
            running = self.start(run_dir, "point=resume.exit;action=slow:2500|" + SLOW, state=None)
            self.until(lambda: (run_dir / "logs").exists() and list(run_dir.glob("logs/*"))[-1:], running)  # noqa: B023
            self.until(lambda: run("status", run_dir).out.startswith("starting"), running)  # noqa: B023
            shown = run("status", run_dir, "--json")
            self.assertEqual((shown.code, json.loads(shown.out)["alive"]), (0, True), shown)
            stopped = run("stop", run_dir)
            self.assertEqual(stopped.code, 0, stopped)
            self.assertIn("asked", stopped.out)
            self.assertEqual(running.wait().code, 75)
            self.assertEqual(status_of(run_dir)["reason"], "STOP file")
            self.assertFalse((run_dir / "STOP").exists())

    def test_a_process_that_ended_before_its_first_status(self):
        run_dir = self.folder / "early"
        running = self.start(run_dir, "point=resume.exit;action=kill9", state=None)
        self.assertEqual(running.wait().code, 137)
        self.at_rest(run_dir, "dead since", 76)
        (run_dir / "status.json").unlink()
        self.at_rest(run_dir, "dead: process", 76)

    def test_follow_ends_with_the_run(self):
        run_dir = self.folder / "followed"
        running = self.start(run_dir)
        follow = Running(["status", run_dir, "--follow", "--exit-code"])
        self.until(lambda: "\n" in follow.printed(), follow)
        os.kill(running.ranks()[0], signal.SIGKILL)
        running.wait()
        result = follow.wait()
        self.assertEqual(result.code, 76, result)
        self.assertTrue(result.out.startswith("running"), result)
        self.assertTrue(result.out.splitlines()[-1].startswith("dead since"), result)

    def test_follow_ends_with_its_reader(self):
        run_dir = self.folder / "unread"
        self.start(run_dir, "point=forward.enter;action=slow:2000")
        begin = time.monotonic()
        code, out, err = shell(f"$E status {run_dir} --follow | head -1; exit ${{PIPESTATUS[0]}}")
        self.assertEqual((code, out.count("\n"), err), (0, 1, ""))
        self.assertLess(time.monotonic() - begin, 12)

    def test_damaged_status(self):
        whole = (self.done / "status.json").read_text()
        fields = json.loads(whole)
        damaged = [whole[: len(whole) // 2], "", "[]", "null", "7", '"text"', "{}", "\0" * 40, "\x1b[2J", '{"a":1,"a":2}', "[" * 5000]
        for key, values in {
            "state": [1, None, "flying", [], "finished\n"], "iteration": ["many", -1, 1e300, 1.5, None, 2**63],
            "iterations": [{}, "4"], "phase": [0, None], "last_commit": [False, {}], "heartbeat": [5, []],
            "exit_code": ["0", 1e99, -5, 70, 256, 2**40, [], None], "reason": [1, ["x"]], "eta_seconds": ["soon", []],
        }.items():  # fmt: skip
            damaged += [json.dumps({**fields, key: value}) for value in values]
            damaged.append(json.dumps({k: v for k, v in fields.items() if k != key}))

        def one(number, text):
            run_dir = self.folder / f"damaged-{number}"
            run_dir.mkdir()
            (run_dir / "status.json").write_text(text)
            for arguments in (["status"], ["status", "--json"], ["status", "--follow"], ["stop"]):
                result = run(arguments[0], run_dir, *arguments[1:])
                if result.code != 65 or len(blocks(result.err)) != 1 or "status.json" not in result.err or "  do " not in result.err:
                    return f"{arguments} of {text[:300]!r}: {result}"
            return None

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            failures = [f for f in pool.map(one, range(len(damaged)), damaged) if f]
        self.assertEqual(failures, [], "\n".join(failures[:5]))

    def test_text_of_others_cannot_move_the_cursor(self):
        run_dir = self.copy("escapes")
        status = {**status_of(run_dir), "state": "failed", "exit_code": 65, "reason": "\x1b[2J\rgone\x07"}
        (run_dir / "status.json").write_text(json.dumps(status))
        result = run("status", run_dir)
        self.assertEqual(result.code, 0, result)
        self.assertNotRegex(result.out, r"[\x00-\x09\x0b-\x1f]")
        self.assertEqual(json.loads(run("status", run_dir, "--json").out)["reason"], status["reason"])

    def test_paths_that_no_system_takes(self):
        for command in ("status", "stop", "verify", "inspect", "resume"):
            result = run(command, "a" * 5000)
            self.assertEqual(result.code, 66, f"{command}: {result.code} {result.err[:200]}")
            self.assertEqual(run(command, "").code, 64)


class Streams(Runs):
    def test_a_reader_that_goes_away_does_not_end_a_run(self):
        for number, (ranks, streams) in enumerate(((1, "2>&1"), (2, "2>&1"), (1, "2>&1 >/dev/null"))):
            run_dir = self.folder / f"read-{number}"
            launcher = "mpirun --oversubscribe --bind-to none -n 2 " if ranks == 2 else ""
            code, out, _ = shell(f"{launcher} $E run {self.config} --run-dir {run_dir} {streams} | head -1; exit ${{PIPESTATUS[0]}}")
            # mpirun of Open MPI 4.1.4 itself crashes (in PMIx_Finalize, after its ranks have ended) in one of fifty such runs.
            self.assertIn(code, (0, 139) if launcher else (0,), out)
            self.assertEqual(status_of(run_dir)["state"], "finished")
            log = (run_dir / "logs/attempt-001/main.log").read_text()
            self.assertIn("iter 4/4", log)
            self.assertIn("Done in", log)

    def test_an_error_reaches_the_log_without_a_reader(self):
        run_dir = self.folder / "lost"
        fault = {"ESPALIER_FAULT": "point=rank.enter;iter=3;action=throw"}
        code, _, _ = shell(f"$E run {self.config} --run-dir {run_dir} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", extra=fault)
        self.assertEqual(code, 70)
        self.assertIn("fault injected at rank.enter", (run_dir / "logs/attempt-001/main.log").read_text())

    def answers(self):
        return [
            "--help", "--version", "run --help", "status --help", f"config {self.config}", "config --schema", "config --reference",
            "config --explain prune.target", f"eval {self.config}", f"status {self.done}", f"status {self.done} --json",
            f"status {self.done} --follow", f"inspect {self.done}", f"inspect {self.done} --json", f"verify {self.done}",
            "doctor --list-faults", f"export {self.done} --out {self.folder}/out",
        ]  # fmt: skip

    def test_an_answer_that_cannot_be_written_is_an_error(self):
        for target, words in ((">/dev/full", "No space left"), (">&-", "closed")):
            for arguments in self.answers():
                with self.subTest(arguments + target):
                    code, _, err = shell(f"$E {arguments} {target}")
                    self.assertEqual(code, 74, err)
                    self.assertIn(f"{words}", err)
                    self.assertIn("standard output", err)
                    self.assertEqual(len(blocks(err)), 1, err)
                    shutil.rmtree(self.folder / "out", ignore_errors=True)

    def test_a_reader_of_an_answer_may_leave(self):
        for arguments in ("config --schema", "--help", f"inspect {self.done} --json"):
            code, out, err = shell(f"$E {arguments} | head -c 1; exit ${{PIPESTATUS[0]}}")
            self.assertEqual((code, len(out), err), (0, 1, ""), arguments)

    def test_a_run_without_standard_streams(self):
        """No file that the run opens may get the number of a stream and its text."""
        for number, closed in enumerate((">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "2>&- >/dev/full")):
            with self.subTest(closed):
                run_dir = self.folder / f"closed-{number}"
                code, out, err = shell(f"$E run {self.config} --run-dir {run_dir} {closed}")
                self.assertEqual(code, 0, out + err)
                self.assertEqual(run("verify", run_dir).code, 0)
                for path in run_dir.rglob("*"):
                    if path.is_file() and path.name != "main.log":
                        self.assertNotIn(b"iter 4/4", path.read_bytes(), path)
                        self.assertNotIn(b"Done in", path.read_bytes(), path)
                plan, gold = (d / "plan.h5" for d in (run_dir, self.done))
                self.assertEqual(plan.read_bytes(), gold.read_bytes())

    def test_an_error_without_standard_error(self):
        code, out, err = shell("$E status none 2>&-")
        self.assertEqual((code, out, err), (66, "", ""))


class Log(Runs):
    def lines(self, text):
        """Every line is one JSON object."""
        parsed = []
        for line in text.splitlines():
            try:
                parsed.append(json.loads(line))
            except json.JSONDecodeError:
                self.fail(f"no JSON: {line!r}\nin\n{text[-3000:]}")
            self.assertIsInstance(parsed[-1], dict, line)
            self.assertTrue({"level", "rank", "text"} <= set(parsed[-1]), line)
        return parsed

    def test_json_of_a_run(self):
        run_dir = self.folder / "run"
        result = self.succeeds("--log-format", "json", "run", self.config, "--run-dir", run_dir)
        self.assertEqual(result.out, "")
        last = self.lines(result.err)[-1]
        self.assertEqual(last["text"], "done")
        row = metrics_of(run_dir)[-1]
        self.assertEqual(last["sparsity_structures"], row["sparsity_structures"])
        self.assertEqual(last["parameters"]["after"], row["parameters"])
        self.assertEqual(last["perplexity"]["held"]["after"], row["perplexity"]["held"])
        self.assertEqual(last["exports"], [str(run_dir / "export/exact")])
        self.lines((run_dir / "logs/attempt-001/main.log").read_text())

    def test_json_of_errors(self):
        wrong = self.bench.config("wrong", prune={"target": 5, "iterations": "x"})
        for arguments, code, problems in [
            (["run", wrong, "--run-dir", self.folder / "x"], 78, 2),
            (["run", self.config], 64, 1),
            (["rnu"], 64, 1),
            (["run", self.config, "--run-dir", self.folder / "x", "--max-hours", "nan"], 64, 1),
            (["run", self.config, "--run-dir", self.folder / "x", "--unknown"], 64, 1),
            (["status", self.folder / "none"], 66, 1),
            (["eval", self.config, "--iteration", 1], 64, 1),
            (["resume", self.folder / "none"], 66, 1),
        ]:
            for form in (["--log-format", "json"], ["--log-format=json"]):
                result = run(*arguments, *form)
                self.assertEqual(result.code, code, result)
                (line,) = self.lines(result.err)
                self.assertEqual((line["level"], line["exit_code"], len(line["problems"])), ("error", code, problems), line)
                for problem in line["problems"]:
                    self.assertTrue(problem["what"] and problem["do"], problem)

    def test_json_of_warnings_and_stops(self):
        run_dir = self.copy("warned")
        (run_dir / "STOP").write_text("late")
        result = self.succeeds("run", self.config, "--run-dir", run_dir, "--log-format", "json")
        self.assertIn("warning", [line["level"] for line in self.lines(result.err)])
        run_dir = self.folder / "stopped"
        running = Running(["run", self.config, "--run-dir", run_dir, "--log-format=json"], extra={"ESPALIER_FAULT": SLOW})
        self.until(lambda: (run_dir / "status.json").exists() and status_of(run_dir)["phase"] == "calibrate", running)
        os.kill(running.ranks()[0], signal.SIGUSR1)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        self.assertIn("stopped", self.lines(result.err)[-1]["text"])

    def test_json_of_the_third_signal(self):
        run_dir = self.folder / "thrice"
        passed = self.folder / "passed"
        fault = {"ESPALIER_FAULT": "point=forward.enter;iter=1;nth=1;action=slow:20000", "ESPALIER_FAULT_TRACE": str(passed)}
        running = Running(["run", self.config, "--run-dir", run_dir, "--log-format=json"], extra=fault)
        # In the slow step itself: a signal before it would be heard, and the run ended, at the first.
        self.until(lambda: passed.exists() and "forward.enter" in passed.read_text().split(), running)
        for _ in range(3):
            os.kill(running.process.pid, signal.SIGUSR1)
            time.sleep(2.1)
        result = running.wait(10)
        self.assertEqual(result.code, 75, result)
        self.assertIn("three times", self.lines(result.err)[-1]["text"])

    def test_json_of_bytes_that_are_no_text(self):
        for path in (b"none\xff\xfe", b"\xc3(", b"a\nb\x1b[2J"):
            done = subprocess.run([PROGRAM, "--log-format=json", "status", path], env=environment(), capture_output=True)
            self.assertEqual(done.returncode, 66)
            (line,) = self.lines(done.stderr.decode("utf-8"))  # strict: must be UTF-8
            self.assertEqual(line["exit_code"], 66)

    def test_text_of_an_error_has_no_control_characters(self):
        done = subprocess.run([PROGRAM, "status", b"a\nespalier: all is well\x1b[2J"], env=environment(), capture_output=True)
        self.assertEqual(done.returncode, 66)
        self.assertEqual(len(blocks(done.stderr.decode())), 1, done.stderr)
        self.assertNotIn(b"\x1b", done.stderr)

    def test_quiet(self):
        run_dir = self.folder / "quiet"
        silent = [
            ["run", self.config, "--run-dir", run_dir], ["resume", run_dir], ["verify", run_dir],
            ["export", run_dir, "--out", self.folder / "out"], ["score", self.config, "--out", self.folder / "scores.h5"],
        ]  # fmt: skip
        for arguments in silent:
            result = self.succeeds("--quiet", *arguments)
            self.assertEqual(result.text, "", arguments)
        running = self.start(self.folder / "stopped")
        self.assertEqual(self.succeeds("stop", self.folder / "stopped", "--quiet").text, "")
        self.assertEqual(running.wait().code, 75)
        for arguments in (["config", self.config], ["status", run_dir], ["inspect", run_dir], ["eval", self.config], ["doctor", "--list-faults"]):
            result = self.succeeds("--quiet", *arguments)
            self.assertTrue(result.out)
            self.assertEqual(result.err, "", arguments)
        self.assertIn("espalier: ", run("--quiet", "status", self.folder / "none").err)

    def test_numbers_and_nouns(self):
        """The share of nothing has no sign, and one is no plural."""
        out = self.folder / "out"
        one = {"calibration": {"domains": [{"name": "a", "tokens": "a.h5", "sequences": 1}]}, "prune": {"iterations": 1}}
        config = self.bench.config("one", **one)
        texts = [
            self.done_text.text, self.succeeds("run", config, "--run-dir", self.folder / "one").text,
            self.succeeds("export", self.done, "--out", out).text, self.succeeds("verify", out).text,
            self.succeeds("verify", self.done).text, self.succeeds("eval", self.config).text,
        ]  # fmt: skip
        for text in texts:
            self.assertNotIn("-0.0", text)
            self.assertNotRegex(text, r"(?<![\w./-])1 [a-z-]+s\b(?! \()")
        self.assertIn("1 layer protected", texts[0])
        self.assertIn("in 1 iteration;", texts[1])
        self.assertIn("1 rank = ", texts[1])
        self.assertIn("1 sequence of", texts[1])
        row = metrics_of(self.done)[-1]
        line = re.search(r"iter 4/4 (.*?) loss", self.done_text.err).group(1)
        shares = [row[f"sparsity_{name}"] for name in ("structures", "parameters", "total_parameters")]
        self.assertEqual(line, "structures -{:.1f}% decoder -{:.1f}% all -{:.1f}%".format(*(100 * s for s in shares)).split(" loss")[0])

    def test_the_largest_sparsity_that_is_offered_works(self):
        offered = re.search(r"any X up to ([\d.]+)", self.done_text.out).group(1)
        self.succeeds("export", self.done, "--out", self.folder / "offered", "--sparsity", offered)


class Options(Runs):
    def test_numeric_options(self):
        config, run_dir = self.config, self.folder / "never"
        for option, arguments, bad in [
            ("--max-hours", ["run", config, "--run-dir", run_dir], ["-1", "1e30"]),
            ("--lock-wait", ["run", config, "--run-dir", run_dir], ["-0.5", "1e30"]),
            ("--tensor", ["run", config, "--run-dir", run_dir], ["0", "-2", "1.5", "99999999999999999999"]),
            ("--iteration", ["eval", config, "--run-dir", self.done], ["-1", "2.5"]),
            ("--logit-rows", ["eval", config], ["0", "-1"]),
            ("--memory", ["plan", config], ["-1", "80G"]),
            ("--ranks", ["plan", config], ["0", "1.5"]),
            ("--sparsity", ["export", self.done, "--out", run_dir], ["-0.1", "1.5"]),
        ]:
            for value in [*bad, "nan", "inf", "-inf", "1e400", "-1e400", "", "two", "0x10", "1 2"]:
                with self.subTest(option=option, value=value):
                    result = run(*arguments, f"{option}={value}")
                    self.assertEqual(result.code, 64, result)
                    self.assertIn(option, result.err)
                    self.assertIn("missing" if value == "" else "for example", result.err)
                    self.assertLess(max(map(len, result.err.splitlines())), 160, result)
        self.assertFalse(run_dir.exists())
        # Decimal, also behind a zero.
        self.assertIn("iteration 10", run("eval", config, "--run-dir", self.done, "--iteration", "010").err)

    def test_unknown_options_come_in_their_order(self):
        result = run("run", self.config, "--run-dir", self.folder / "x", "--first", "--second", "third", "--run-dri=4")
        self.assertEqual(result.code, 64, result)
        self.assertRegex(result.err, "--first.*--second.*third.*--run-dri")
        self.assertIn("Did you mean '--run-dir'?", result.err)
        self.assertIn("--log-format", run("status", self.done, "--log-fromat", "json").err)

    def test_errors_name_the_option(self):
        none = self.folder / "none"
        for ranks in (1, 2):
            for command in ("eval", "score"):
                out = ["--out", self.folder / "out.h5"]
                for option in ("--model", "--run-dir", "--plan") if command == "eval" else ("--run-dir", "--plan"):
                    result = run(command, self.config, option, none, *out, ranks=ranks)
                    self.assertEqual(result.code, 66, result)
                    self.assertEqual(len(blocks(result.err)), 1, result)
                    self.assertIn(f"{option} {none}", result.err)
                    self.assertNotIn("model.path", result.err)
        result = run("eval", self.config, "--model", self.bench.folder)
        self.assertEqual(result.code, 66, result)
        self.assertIn(f"--model {self.bench.folder}", result.err)
        self.assertNotIn("model.path", result.err)

    def test_many_ranks_tell_an_error_once(self):
        wrong = self.bench.config("wrong", prune={"target": 5, "iterations": "x"}, device="tpu")
        for arguments, code, problems in [
            (["eval", self.config, "--iteration", 1], 64, 1),
            (["score", self.config, "--plan", "a", "--run-dir", "b", "--out", "c"], 64, 1),
            (["run", self.config], 64, 1),
            (["run", self.config, "--run-dir", self.folder / "x", "--max-hours=-1"], 64, 1),
            (["run", self.config, "--run-dir", self.folder / "x", "--tensor", 3], 69, 1),
            (["run", wrong, "--run-dir", self.folder / "x"], 78, 3),
        ]:
            with self.subTest(arguments):
                result = run(*arguments, ranks=2)
                self.assertEqual(result.code, code, result)
                self.assertEqual(len(blocks(result.err)), 1, result)
                self.assertEqual(len(re.findall("^  do ", result.err, re.MULTILINE)), problems, result)
                if problems > 1:
                    self.assertEqual(len(re.findall("^  what ", result.err, re.MULTILINE)), problems, result)
                    self.assertEqual(len(re.findall("^  where ", result.err, re.MULTILINE)), problems, result)


class ClusterScripts(Runs):
    """The job scripts with stand-ins for the launcher and the batch system."""

    def tree(self, name):
        tree = self.folder / name
        for folder in ("bin", "configs", "build/release/bin"):
            (tree / folder).mkdir(parents=True)
        shutil.copytree(ROOT / "cluster", tree / "cluster")
        (tree / "build/release/bin/espalier").symlink_to(PROGRAM)
        run_line = f'exec "{PROGRAM}" run "{self.config}" --run-dir runs/a $more'
        for command, text in (("mpirun", run_line), ("scontrol", 'echo "$@" > submitted'), ("qsub", 'echo "$@" > submitted')):
            (tree / "bin" / command).write_text(f"#!/bin/bash\n{text}\n")
            (tree / "bin" / command).chmod(0o755)
        return tree

    def test_they_submit_themselves_again_unless_somebody_stopped_the_run(self):
        for script, again in (("slurm/espalier.sbatch", "requeue 17"), ("pbs/espalier.pbs", "cluster/pbs/espalier.pbs")):
            for asked_by in ("signal", "stop", "hang", "nobody"):
                with self.subTest(script, asked_by=asked_by):
                    tree = self.tree(f"{pathlib.Path(script).stem}-{pathlib.Path(script).parent}-{asked_by}")
                    extra = {"PATH": f"{tree}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "PBS_O_WORKDIR": str(tree), "PBS_NODEFILE": "none"}
                    if asked_by == "hang":
                        extra |= {"ESPALIER_FAULT": "point=rank.enter;action=slow:60000", "more": "--hang-timeout 1"}
                    elif asked_by != "nobody":
                        extra["ESPALIER_FAULT"] = SLOW
                    job = subprocess.Popen(
                        ["bash", f"cluster/{script}"], cwd=tree, env=environment(extra), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                        stdin=subprocess.DEVNULL, start_new_session=True,
                    )  # fmt: skip
                    run_dir = tree / "runs/a"
                    deadline = time.monotonic() + 40
                    while asked_by in ("signal", "stop") and time.monotonic() < deadline:
                        if (run_dir / "status.json").exists() and status_of(run_dir)["phase"] == "calibrate":
                            break
                        time.sleep(0.02)
                    if asked_by == "signal":
                        os.kill(job.pid, signal.SIGUSR1)
                    elif asked_by == "stop":
                        self.succeeds("stop", run_dir)
                    error = job.communicate(timeout=50)[1].decode()
                    self.assertEqual(job.returncode, {"nobody": 0, "hang": 76}.get(asked_by, 75), error)
                    submitted = (tree / "submitted").read_text().strip() if (tree / "submitted").exists() else None
                    continues = ("signal", "hang") if script.startswith("slurm") else ("signal",)
                    self.assertEqual(submitted, again if asked_by in continues else None, error)


class Examples(Case):
    """Every example of every --help, in a tree as the quickstart leaves it."""

    ORDER = ("", *COMMANDS)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tree = cls.tree = cls.class_folder / "clone"
        (tree / "tests/models").mkdir(parents=True)
        (tree / "quickstart").mkdir()
        (tree / "bin").mkdir()
        shutil.copytree(ROOT / "configs", tree / "configs")
        (tree / "tests/models/tri-domain-qwen2").symlink_to(ROOT / "tests/models/tri-domain-qwen2")
        for number, domain in enumerate(("prose", "math", "code")):
            write_tokens(tree / f"quickstart/{domain}.calibration.h5", rows=48, length=4, vocab=1024, seed=number)
            write_tokens(tree / f"quickstart/{domain}.heldout.h5", rows=2, length=4, vocab=1024, seed=number)
        (tree / "bin/espalier").symlink_to(PROGRAM)

    def test_they_work(self):
        extra = {"PATH": f"{self.tree}/bin:{os.environ['PATH']}", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
        ran = 0
        for command in self.ORDER:
            text = self.succeeds(*([command] if command else []), "--help").out
            self.assertLessEqual(max(map(len, text.splitlines())), 130, text)
            examples = text.partition("Examples:\n")[2].strip().splitlines()
            self.assertEqual(len(examples), 2, text)
            for example in examples:
                with self.subTest(example):
                    code, out, err = shell(example.strip(), cwd=self.tree, extra=extra)
                    # A finished run has nothing to stop; the drill ends as a killed process does, whether the
                    # shell waits for it or has become it.
                    expected = (66,) if command == "stop" else (137, -9) if "kill9" in example else (0,)
                    self.assertIn(code, expected, f"{example}\n{out}{err}")
                    ran += 1
        self.assertEqual(ran, 2 * len(self.ORDER))

    def test_all_commands_have_examples(self):
        listed = re.findall(r"^  (\w+)  ", self.succeeds("--help").out.partition("Subcommands:")[2], re.MULTILINE)
        self.assertEqual(sorted(listed), sorted(COMMANDS))


if __name__ == "__main__":
    main()
