"""Runs one unittest file for CTest, so that its verdict is true: run_program_test.py FILE [CLASS...]

Ends with 77 when every test was skipped, which CTest counts as skipped, with 1 when one failed or none ran, else with 0.
"""

import pathlib
import runpy
import sys
import unittest

results = []


class Recorded(unittest.TextTestRunner):
    def run(self, test):
        results.append(super().run(test))
        return results[-1]


def verdict(code):
    ran = sum(result.testsRun for result in results)
    # A part of a test bears the test's name and what it is a part for.
    skipped = sum(len({test.id().partition(" ")[0] for test, _ in result.skipped}) for result in results)
    if code or not all(result.wasSuccessful() for result in results):
        return 1
    if ran == 0 and skipped == 0:
        print("no test ran", file=sys.stderr)
        return 1
    # A class that is skipped as a whole counts as one skip and no test.
    return 77 if skipped >= ran else 0


def main():
    file = pathlib.Path(sys.argv[1]).resolve()
    # What unittest.main takes when it is given no other.
    unittest.TextTestRunner = unittest.runner.TextTestRunner = Recorded
    sys.argv = [str(file), *sys.argv[2:]]
    sys.path.insert(0, str(file.parent))
    code = 0
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.exit(verdict(code))


if __name__ == "__main__":
    main()
