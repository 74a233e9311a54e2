"""tests/bench/compare.py: what it names of two results of `espalier bench`, and how it ends."""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(__file__).resolve().parents[1] / "bench/compare.py"
RESULT = {
    "machine": {"name": "a processor", "device": "cpu (AVX2)", "threads": 1, "ranks": 2, "libraries": {"version": "1"}},
    "shape": {"hidden": 64, "channels": 160, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 256, "dtype": "float32"},
    "gemm_flops_per_s": 100e9,
    "passes": [
        {"criterion": criterion, "order": "sample_major", "recompute": "auto", "tensor": 2, "data": 1, "sequences": 8,
         "sequence_tokens": 64, "micro_batch_tokens": 256, "seconds": 2.0, "tokens_per_s": 256.0, "model_flops_per_s": 70e9,
         "hardware_flops_per_s": 80e9, "peak_bytes": 1 << 28, "seconds_by_phase": {"calibrate": 1.95, "reduce": 0.05}}
        for criterion in ("taylor", "taylor_gate")],
    "collectives": [{"group": "tensor", "bytes": 4096, "seconds": 1e-5}],
}


class Compare(unittest.TestCase):
    def compare(self, old, new, *options):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, content in (("old", old), ("new", new)):
                paths.append(pathlib.Path(folder, name + ".json"))
                paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
            return subprocess.run([sys.executable, PROGRAM, *paths, *options], capture_output=True, text=True)

    def changed(self, **change):
        result = copy.deepcopy(RESULT)
        for path, value in change.items():
            *keys, last = path.split("__")
            place = result
            for key in keys:
                place = place[int(key) if key.isdigit() else key]
            if value is None:
                del place[int(last) if last.isdigit() else last]
            else:
                place[last] = value
        return result

    def test_equal_results(self):
        done = self.compare(RESULT, RESULT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout, "nothing got slower by more than 5 % (12 figures)\n")

    def test_within_the_limit_and_faster(self):
        done = self.compare(RESULT, self.changed(gemm_flops_per_s=95.3e9, passes__0__seconds=2.09, passes__1__tokens_per_s=999.0))
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_what_got_slower_is_named(self):
        done = self.compare(RESULT, self.changed(
            gemm_flops_per_s=80e9, passes__1__seconds=2.5, passes__1__tokens_per_s=204.8, collectives__0__seconds=2e-5))
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.splitlines(), [
            "slower by 25.0 %: gemm_flops_per_s 1e+11 -> 8e+10",
            "slower by 25.0 %: taylor_gate, sample_major, tensor 2 x data 1: seconds 2 -> 2.5",
            "slower by 25.0 %: taylor_gate, sample_major, tensor 2 x data 1: tokens_per_s 256 -> 204.8",
            "slower by 100.0 %: collective tensor of 4096 bytes: seconds 1e-05 -> 2e-05"])

    def test_phases_count_from_a_twentieth_on(self):
        done = self.compare(RESULT, self.changed(passes__0__seconds_by_phase__reduce=0.09))
        self.assertEqual(done.returncode, 0, done.stdout)
        done = self.compare(RESULT, self.changed(passes__0__seconds_by_phase__calibrate=2.2))
        self.assertIn("taylor, sample_major, tensor 2 x data 1: seconds_by_phase.calibrate 1.95 -> 2.2", done.stdout)
        self.assertEqual(done.returncode, 1)

    def test_the_limit(self):
        slow = self.changed(gemm_flops_per_s=80e9)
        self.assertEqual(self.compare(RESULT, slow, "--limit", "30").returncode, 0)
        self.assertEqual(self.compare(RESULT, self.changed(gemm_flops_per_s=99e9), "--limit", "0").returncode, 1)

    def test_what_is_gone(self):
        done = self.compare(RESULT, self.changed(passes__1=None))
        self.assertEqual(done.returncode, 1)
        self.assertIn("gone: taylor_gate, sample_major, tensor 2 x data 1: seconds\n", done.stdout)

    def test_differences_are_said(self):
        done = self.compare(RESULT, self.changed(machine__name="another", shape__layers=3, passes__0__sequences=9))
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.splitlines()[:3], [
            "machine differs: name a processor -> another", "shape differs: layers 2 -> 3",
            "work differs: taylor, sample_major, tensor 2 x data 1: sequences 8 -> 9"])

    def test_what_is_no_result(self):
        for bad in ("{", "[]", "{}", '"x"', json.dumps(self.changed(gemm_flops_per_s="x")), json.dumps(self.changed(passes__0__seconds=0)),
                    json.dumps(self.changed(passes__0__order=None)), json.dumps(self.changed(gemm_flops_per_s=float("nan")))):
            for done in (self.compare(bad, RESULT), self.compare(RESULT, bad)):
                self.assertEqual(done.returncode, 65, bad)
                self.assertIn("is not what `espalier bench --json` writes", done.stderr)
                self.assertNotIn("Traceback", done.stderr)
        absent = subprocess.run([sys.executable, PROGRAM, "/absent/a", "/absent/b"], capture_output=True, text=True)
        self.assertEqual(absent.returncode, 65)

    def test_wrong_usage(self):
        for arguments in ([], ["a"], ["a", "b", "--limit", "x"], ["a", "b", "--limit", "-1"]):
            done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 64, arguments)


if __name__ == "__main__":
    unittest.main()
