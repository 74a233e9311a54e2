"""What CTest and launch/test.sh are told about a test file: tests/support/run_program_test.py and count_results.py."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
FILE = '''
import sys, unittest
sys.path.insert(0, %r)
class OneOfTwoSkipped(unittest.TestCase):
    def test_a(self): self.skipTest("no reason")
    def test_b(self): pass
class AllSkipped(unittest.TestCase):
    def test_a(self): self.skipTest("no reason")
class SkippedAsAClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("no reason")
    def test_a(self): pass
    def test_b(self): pass
class SkippedPart(unittest.TestCase):
    def test_a(self):
        with self.subTest(1): self.skipTest("no reason")
        with self.subTest(2): self.skipTest("no reason")
    def test_b(self): pass
class FailedPart(unittest.TestCase):
    def test_a(self):
        with self.subTest(1): self.fail("no reason")
class SkippedAndFailed(unittest.TestCase):
    def test_a(self): self.skipTest("no reason")
    def test_b(self): self.fail("no reason")
class Broken(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no reason")
    def test_a(self): pass
class Passed(unittest.TestCase):
    def test_a(self): pass
class Empty(unittest.TestCase):
    pass
if __name__ == "__main__":
    if "unittest" in sys.argv: sys.argv.remove("unittest"); unittest.main()
    import os
    os.environ["ESPALIER"] = sys.executable
    import workbench
    workbench.main()
''' % str(SUPPORT)
VERDICTS = {
    "OneOfTwoSkipped": (0, "1 0 1"),
    "AllSkipped": (77, "0 0 1"),
    "SkippedAsAClass": (77, "0 0 1"),
    "SkippedPart": (0, "1 0 2"),
    "FailedPart": (1, "0 1 0"),
    "SkippedAndFailed": (1, "0 1 1"),
    "Broken": (1, "0 1 0"),
    "Passed": (0, "1 0 0"),
    "Empty": (1, "0 1 0"),
    "Missing": (1, "0 1 0"),
}
# Of these the counts are compared too: loading the support code takes long.
COUNTED = ("OneOfTwoSkipped", "AllSkipped", "SkippedAsAClass", "SkippedPart", "SkippedAndFailed", "Empty")
JUNIT = '<testsuite><testcase name="t" status="{status}">{mark}<system-out>{text}</system-out></testcase></testsuite>'


class Verdicts(unittest.TestCase):
    def test_code_and_counts_of_every_kind_of_end(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        file = folder / "test_sample.py"
        file.write_text(FILE)
        for name, (code, counts) in VERDICTS.items():
            for how in (["unittest"], []):
                if how == [] and name not in COUNTED:
                    continue
                with self.subTest(name=name, how=how):
                    command = [sys.executable, SUPPORT / "run_program_test.py", file, name, *how]
                    done = subprocess.run(command, capture_output=True, text=True)
                    self.assertEqual(done.returncode, code, done)
                    if how == []:  # as CTest writes it
                        status = {0: "run", 1: "fail", 77: "notrun"}[code]
                        mark = '<skipped message="SKIP_RETURN_CODE=77"/>' if code == 77 else ""
                        text = (done.stdout + done.stderr).replace("&", "&amp;").replace("<", "&lt;")
                        junit = folder / "junit.xml"
                        junit.write_text(JUNIT.format(status=status, mark=mark, text=text))
                        counted = subprocess.run([sys.executable, SUPPORT / "count_results.py", "ctest", junit],
                                                 capture_output=True, text=True)
                        self.assertEqual(counted.stdout.split("\t")[0], counts, done)
                        told = subprocess.run([sys.executable, SUPPORT / "count_results.py", "failures", junit],
                                              capture_output=True, text=True)
                        self.assertEqual(told.returncode, 0, told)
                        self.assertEqual(bool(told.stdout), code == 1, told)
                        if name == "SkippedAndFailed":
                            self.assertRegex(told.stdout, r"^t: FAIL: test_\w+ .*\n(?s:.*)AssertionError")


if __name__ == "__main__":
    unittest.main()
