"""launch/gpu_check.sh: what it says without a GPU, and what it writes where the programs that it calls are stand-ins."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
SMI = '#!/bin/bash\nif [ "$1" = -L ]; then for i in $(seq GPUS); do echo "GPU $((i - 1)): NVIDIA Test"; done; else echo "NVIDIA Test"; fi\n'
ESPALIER = """#!/bin/bash
echo "$*" >>"$CALLS"
if [ "$1" = --version ]; then echo espalier 0; exit; fi
while [ $# -gt 1 ]; do shift; done
echo "pass     taylor: fast"
echo '{}' >"$1"
"""


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="espalier-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "bin").mkdir()
        (self.folder / "launch").mkdir()
        for name in ("gpu_check.sh", "common.sh"):
            shutil.copy(LAUNCH / name, self.folder / "launch")
        self.report = self.folder / "report"

    def program(self, path, text):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def with_gpus(self, count, tests=0):
        self.program("bin/nvidia-smi", SMI.replace("GPUS", str(count)))
        self.program("bin/nvcc", "#!/bin/sh\n")
        self.program("bin/ctest", f'#!/bin/sh\necho "ctest $*" >>"$CALLS"\necho "2/2 Test #2: nccl_test.np2 ... ***Skipped"\nexit {tests}\n')
        self.program("bin/mpirun", '#!/bin/bash\necho "mpirun $2" >>"$CALLS"\nshift 4\nexec "$@"\n')
        self.program("launch/setup.sh", '#!/bin/sh\necho "setup $*" >>"$CALLS"\n')
        self.program("launch/build.sh", '#!/bin/sh\necho "build $*" >>"$CALLS"\n')
        self.program("build/cuda/bin/espalier", ESPALIER)

    def run_check(self, *arguments):
        environment = dict(os.environ, PATH=f"{self.folder}/bin:{os.environ['PATH']}", CALLS=str(self.folder / "calls"))
        return subprocess.run([self.folder / "launch/gpu_check.sh", *arguments], env=environment, capture_output=True, text=True, timeout=60)

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    def test_without_a_gpu_it_ends_with_69_and_one_line(self):
        self.program("bin/nvidia-smi", SMI.replace("GPUS", "0"))
        for program in ("#!/bin/sh\nexit 9\n", SMI.replace("GPUS", "0")):
            self.program("bin/nvidia-smi", program)
            result = self.run_check(self.report)
            self.assertEqual((result.returncode, result.stdout), (69, ""), result)
            self.assertEqual(result.stderr.count("\n"), 1, result)
            self.assertTrue(result.stderr.startswith("no GPU: "), result)
            self.assertFalse(self.report.exists(), "nothing is left behind")

    def test_wrong_usage_and_a_directory_that_is_there(self):
        self.with_gpus(1)
        for arguments, code in ((["--fast"], 64), (["a", "b"], 64), ([self.folder], 73)):
            result = self.run_check(*arguments)
            self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")), (code, "", 1), result)

    def test_one_gpu(self):
        self.with_gpus(1)
        result = self.run_check(self.report)
        self.assertEqual(result.returncode, 0, result)
        calls = self.calls()
        self.assertEqual(calls[:2], ["setup --cuda", "build cuda"])
        self.assertTrue(any(call.startswith("ctest --preset cuda -L gpu ") for call in calls), calls)
        self.assertFalse(any(call.startswith("mpirun") for call in calls), calls)
        names = {path.name for path in self.report.iterdir()}
        self.assertLessEqual({"summary.txt", "machine.txt", "tests.log", "bench-7b.json", "bench-7b.log", "bench-32b.json"}, names)
        self.assertTrue(any("--order layer_major" in call and "bench-32b-layer-major.json" in call for call in calls), calls)
        summary = (self.report / "summary.txt").read_text()
        self.assertIn("1 x NVIDIA Test\n", summary)
        self.assertIn("nccl_test.np2 ... ***Skipped", summary)
        self.assertIn("2 GPUs: there are 1\n", summary)
        self.assertIn("  pass     taylor: fast\n", summary)
        self.assertTrue(summary.endswith(f"{self.report}: 0 failed\n"), summary)

    def test_four_gpus_are_measured_over_both_ways_and_both_layouts(self):
        self.with_gpus(4)
        self.assertEqual(self.run_check(self.report).returncode, 0)
        calls = self.calls()
        self.assertEqual([calls.count(f"mpirun {n}") for n in (2, 4, 8)], [4, 4, 0])
        for ranks in (2, 4):
            for way in ("nccl", "mpi"):
                for tensor in (ranks, 1):
                    name = f"bench-32b-{ranks}-ranks-tensor-{tensor}-{way}.json"
                    self.assertTrue((self.report / name).exists(), name)
                    self.assertTrue(any(f"--tensor {tensor} --collectives {way} --out {self.report}/{name}" in c for c in calls), calls)

    def test_a_failure_is_named_and_the_rest_is_done(self):
        self.with_gpus(1, tests=8)
        result = self.run_check(self.report)
        self.assertEqual(result.returncode, 1, result)
        summary = (self.report / "summary.txt").read_text()
        self.assertRegex(summary, r"FAILED +\d+ s  tests \(exit 8, see tests\.log\)")
        self.assertTrue((self.report / "bench-32b.json").exists())
        self.assertTrue(summary.endswith(": 1 failed\n"), summary)


if __name__ == "__main__":
    unittest.main()
