"""The table of promises in docs/reliability.md: what tests/support/promises.py makes of tests and objects to."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SUPPORT = pathlib.Path(__file__).resolve().parents[1] / "support"
sys.path.insert(0, str(SUPPORT))
import promises

JUNIT = """<testsuite timestamp="2030-01-31T12:00:00">
<testcase name="faults.fault_01_a.First" status="run"><system-out>[       OK ] A.b (1 ms)
[       OK ] A.c (1 ms)</system-out></testcase>
<testcase name="faults.fault_01_a.Second" status="fail"><system-out>[  FAILED  ] A.d (1 ms)</system-out></testcase>
<testcase name="faults.fault_02_b" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/><system-out/></testcase>
<testcase name="faults.points" status="run"><system-out>[       OK ] A.b (1 ms)</system-out></testcase>
</testsuite>
"""


class Promises(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.document = self.root / "docs/reliability.md"
        self.document.parent.mkdir()
        self.document.write_text(f"before\n\n{promises.BEGIN}\n{promises.END}\n\nafter\n")
        self.tests = self.root / "tests/faults"
        self.tests.mkdir(parents=True)
        for number in range(1, promises.PROMISES + 1):
            name = f"fault_{number:02}_{'abc'[number % 3 - 1]}"
            (self.tests / f"test_{name}.py").write_text(f'"""Promise {number}\nholds.\n\nBreaks a|b.\n"""\n')
            with open(self.tests / "CMakeLists.txt", "a") as file:
                file.write(f"espalier_program_test({name} faults 900)\n")

    def run_tool(self, *words):
        command = [sys.executable, SUPPORT / "promises.py", "--root", self.root, *words]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr

    def objects(self, word):
        code, text = self.run_tool("--check")
        self.assertEqual(code, 1)
        self.assertIn(word, text)

    def test_what_is_written_is_accepted(self):
        self.objects("its table is not that of the tests")
        self.assertEqual(self.run_tool("--write"), (0, ""))
        self.assertEqual(self.run_tool("--check"), (0, ""))
        text = self.document.read_text()
        self.assertTrue(text.startswith("before\n\n") and text.endswith("\n\nafter\n"), text)
        link = "[`test_fault_01_a.py`](../tests/faults/test_fault_01_a.py)"
        self.assertIn(f"| 1 | Promise 1 holds. | {link} | Breaks a\\|b. | not recorded |", text)

    def test_results_come_from_a_run_and_stay(self):
        junit = self.root / "ci.xml"
        junit.write_text(JUNIT)
        self.assertEqual(self.run_tool("--write", "--junit", junit)[0], 0)
        for _ in range(2):
            text = self.document.read_text()
            self.assertIn("| 2 passed, 1 failed 2030-01-31 (no commit) |", text)
            self.assertIn("| 1 skipped 2030-01-31 (no commit) |", text)
            self.assertEqual(text.count("not recorded"), promises.PROMISES - 2)
            self.assertEqual(self.run_tool("--write"), (0, ""))
        # A result is no promise: another one is no difference.
        self.document.write_text(text.replace("not recorded", "4 passed 2030-02-01 (1234567)"))
        self.assertEqual(self.run_tool("--check"), (0, ""))

    def test_what_is_not_in_order(self):
        self.run_tool("--write")
        second = self.tests / "test_fault_02_b.py"
        text = second.read_text()
        third, beyond = (self.tests / f"test_fault_{number}_d.py" for number in ("03", "29"))
        for change, word in (
            (lambda: second.write_text(text.replace("holds", "breaks")), "its table is not that of the tests"),
            (lambda: second.write_text('"""Only a promise."""\n'), "its docstring is not"),
            (lambda: second.write_text('"""No end\n\nAn end."""\n'), "its docstring is not"),
            (lambda: second.rename(third), "promise 2 has no test"),
            (lambda: third.rename(beyond), "its number is none"),
            (lambda: beyond.rename(self.tests / "test_fault_02_d.py"), "does not run it"),
        ):
            change()
            self.objects(word)

    def test_a_document_without_marks(self):
        self.document.write_text("nothing")
        self.objects("the marks of the table are missing")


if __name__ == "__main__":
    unittest.main()
