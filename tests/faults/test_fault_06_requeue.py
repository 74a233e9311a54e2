"""A node is lost, a job is preempted or asked to stop through Slurm: the job continues by itself, to the end it would have had.

Preempts, signals, cancels and limits jobs and takes nodes down, on a Slurm of two virtual nodes that
tests/faults/slurm/up.sh starts, with the job script that users get; `espalier stop` alone is not continued.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted, phase_of, wait_for
from workbench import FULL, PROGRAM, ROOT, environment, main, program_of, status_of

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = ROOT / "cluster/slurm/espalier.sbatch"
PATH = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
# Three rounds or more of 1.5 s in the second iteration: time enough to ask, and the answer comes soon.
SLOW = "point=forward.enter;iter=2;action=slow:1500"
# For what Slurm takes a while to notice.
STUCK = "point=forward.enter;iter=2;nth=2;action=slow:100000"
FIRST_ATTEMPT = """#!/bin/bash
if [ "${{SLURM_RESTART_COUNT:-0}}" != 0 ]; then unset ESPALIER_FAULT; fi
if [ "$1 $ESPALIER_FAULT" = "run loading" ]; then touch loading; exec sleep 1000; fi
exec "{program}" "$@"
"""
# Both nodes are this machine: their ranks would share a core, and may have no network but the loopback.
MPI = {
    "hwloc_base_binding_policy": "none",
    "mpi_yield_when_idle": "1",
    "pml": "ob1",
    "oob_tcp_if_include": "lo",
    "btl_tcp_if_include": "lo",
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


def environment_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class Requeue(Interrupted):
    @classmethod
    def setUpClass(cls):
        if not all(shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "sbatch")):
            raise unittest.SkipTest("needs slurm-wlm and munge: launch/setup.sh --tests installs them where it may")
        super().setUpClass()
        cls.class_folder.chmod(0o755)  # munged wants a socket that everybody could reach
        cls.slurm = cls.class_folder.resolve() / "slurm"
        cls.environment = environment({"SLURM_CONF": str(cls.slurm / "slurm.conf"), "PATH": PATH})
        cls.addClassCleanup(cls.bring_down)
        up = cls.script("up.sh")
        if up.returncode == 69:
            raise unittest.SkipTest(up.stderr.splitlines()[0])
        if up.returncode != 0:
            raise AssertionError(up.stderr)

    @classmethod
    def script(cls, name):
        words = [HERE / "slurm" / name, cls.slurm]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200)

    @classmethod
    def bring_down(cls):
        down = cls.script("down.sh")
        if down.returncode != 0:
            raise AssertionError(down.stderr)

    def setUp(self):
        super().setUp()
        self.run_dir = self.folder / "run"
        # The fault is the first attempt's.
        program = self.folder / "build/release/bin/espalier"
        program.parent.mkdir(parents=True)
        program.write_text(FIRST_ATTEMPT.format(program=PROGRAM))
        program.chmod(0o755)

    def ask(self, *words, extra=None):
        """A command of Slurm."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**self.environment, **(extra or {})},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        self.assertEqual(done.returncode, 0, done.args + [done.stderr, self.log()])
        return done.stdout.strip()

    def submit(self, fault, *options):
        extra = {"ESPALIER_FAULT": fault, **{f"OMPI_MCA_{name}": value for name, value in MPI.items()}}
        sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", *options]
        self.job = self.ask(*sbatch, SCRIPT, self.config, self.run_dir, "--tensor", 2, extra=extra)
        self.addCleanup(self.ask, "scancel", self.job)

    def shown(self):
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", self.job)))

    def log(self):
        return "".join(path.read_text(errors="backslashreplace")[-6000:] for path in self.folder.glob("espalier.*.log"))

    def awaits(self, condition, timeout=120):
        try:
            wait_for(condition, timeout=timeout, pause=0.1)
        except AssertionError as error:
            job = self.ask("scontrol", "show", "job", self.job)
            daemons = "".join(path.read_text()[-3000:] for path in (self.slurm / "log").glob("slurm*.log"))
            raise AssertionError(f"{error}\n{job}\n{self.log()}\n{daemons}") from None

    def is_in_the_second_iteration(self):
        """Waits until it is at the fault, with one commit to continue from."""
        self.awaits(lambda: phase_of(self.run_dir) == "calibrate" and status_of(self.run_dir)["iteration"] == 2)

    def state(self):
        """What became of the job, or None while it may go on."""
        state = self.shown()["JobState"]
        return state if state in ENDED else None

    def has_ended(self, state, code, restarts):
        self.awaits(self.state)
        job = self.shown()
        self.assertEqual((job["JobState"], job["ExitCode"]), (state, code), self.log())
        self.assertIn(int(job["Restarts"]), restarts, self.log())
        wait_for(lambda: not self.ranks())

    def was_continued(self, restarts=(1,)):
        """The job goes on with nobody's help, to the end that the run would have had."""
        self.has_ended("COMPLETED", "0:0", restarts)
        self.is_gold(self.run_dir, self.log())

    def ranks(self):
        """Process numbers of the program in jobs of this Slurm."""
        mark = f"SLURM_CONF={self.slurm}/slurm.conf".encode()
        ours = (int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit())
        return [p for p in ours if program_of(p) == os.path.realpath(PROGRAM) and mark in environment_of(p)]

    def preempt(self):
        self.ask("sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=:")

    def test_preempted_by_a_job_of_higher_priority(self):
        self.submit(SLOW)
        self.is_in_the_second_iteration()
        self.preempt()
        self.was_continued()

    def test_preempted_without_the_signal(self):
        """Many clusters lack preempt_send_user_signal: SIGTERM to the job's steps, and nothing to the script."""
        file = self.slurm / "slurm.conf"
        whole = file.read_text()
        self.addCleanup(self.ask, "scontrol", "reconfigure")
        self.addCleanup(file.write_text, whole)
        file.write_text(whole.replace("SlurmctldParameters=preempt_send_user_signal", ""))
        self.ask("scontrol", "reconfigure")
        self.submit(STUCK)
        self.is_in_the_second_iteration()
        self.preempt()
        self.assertNotIn("Forwarding signal 10", self.log())
        self.was_continued()

    def test_cancelled(self):
        self.submit(STUCK)
        self.is_in_the_second_iteration()
        self.ask("scancel", self.job)
        self.has_ended("CANCELLED", "0:15", restarts=(0,))
        self.continues_to_gold(self.run_dir, 1, 2)

    def test_asked_to_stop_through_slurm(self):
        self.submit(SLOW)
        self.is_in_the_second_iteration()
        self.ask("scancel", "--signal=USR1", "--batch", self.job)
        self.was_continued()

    def test_asked_to_stop_while_the_program_is_loaded(self):
        """It cannot listen yet: the signal ends it."""
        self.submit("loading")
        self.awaits(lambda: (self.folder / "loading").exists())
        self.ask("scancel", "--signal=USR1", "--batch", self.job)
        self.was_continued()

    def test_the_time_limit_is_near(self):
        """Slurm looks every half minute and may be a minute early: some time in the first attempt."""
        self.submit("point=forward.enter;action=slow:1500", "--time=1", "--signal=B:USR1@50")
        self.was_continued(restarts=(1, 2))

    def test_node_set_down(self):
        self.submit(STUCK)
        self.is_in_the_second_iteration()
        self.ask("scontrol", "update", "nodename=n2", "state=down", "reason=drill")
        try:
            self.awaits(lambda: self.shown()["Restarts"] == "1")
        finally:
            self.ask("scontrol", "update", "nodename=n2", "state=resume")
        self.was_continued()

    def test_daemon_of_a_node_killed(self):
        """Of the node that runs the job script first: script and ranks live on until the daemon is back."""
        for node in ("n1", "n2") if FULL else ("n1",):
            with self.subTest(node):
                self.run_dir = self.folder / node
                self.submit(STUCK)
                self.is_in_the_second_iteration()
                os.kill(int((self.slurm / f"run/slurmd.{node}.pid").read_text()), signal.SIGKILL)
                self.awaits(lambda: self.shown()["Restarts"] == "1")
                self.ask("slurmd", "-N", node, extra={"ESPALIER_TEST_SLURM": str(self.slurm)})
                self.was_continued()

    def test_espalier_stop(self):
        """Who asks this way wants it stopped: no requeue."""
        self.submit(SLOW)
        self.is_in_the_second_iteration()
        self.succeeds("stop", self.run_dir)
        self.has_ended("FAILED", "75:0", restarts=(0,))
        self.assertEqual(status_of(self.run_dir)["reason"], "STOP file")
        self.continues_to_gold(self.run_dir, 1, 2)


if __name__ == "__main__":
    main()
