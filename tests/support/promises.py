"""The table of docs/reliability.md, made from the tests: promises.py [--write | --check] [--junit FILE] [--root DIR]

Every promise has a number and one file tests/faults/test_fault_NN_name.py. The first paragraph of its docstring is the
promise, the second what the test does to break it. Without an option the table is printed.

    --write   puts it into docs/reliability.md, between its two marks
    --check   fails when the table there says something else, a promise has no test, or CTest does not run it
    --junit   the last results are those of this file of `ctest --output-junit`; without it those of the table stay

Exit codes: 0 in order, 1 not.
"""

import argparse
import ast
import collections
import datetime
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from count_results import of_case

PROMISES = 28
BEGIN = "<!-- made by tests/support/promises.py: change the docstrings of the tests, then run it with --write -->"
END = "<!-- end of the table -->"
HEAD = ["| | what is promised | test | what it does to break it | last result |", "|---|---|---|---|---|"]
NEVER = "not recorded"


class Trees:
    """The tree that has the tests and the document; problems are collected."""

    def __init__(self, root):
        self.document = root / "docs/reliability.md"
        self.tests = root / "tests/faults"
        self.root = root
        self.problems = []

    def files(self):
        """{number: file}"""
        found = {}
        for file in sorted(self.tests.glob("test_fault_*.py")):
            match = re.fullmatch(r"test_fault_(\d\d)_\w+\.py", file.name)
            number = int(match.group(1)) if match else 0
            if not 1 <= number <= PROMISES:
                self.problems.append(f"{file.name}: its number is none from 01 to {PROMISES}")
            elif number in found:
                self.problems.append(f"{file.name}: promise {number} has {found[number].name} already")
            else:
                found[number] = file
        for number in range(1, PROMISES + 1):
            if number not in found:
                self.problems.append(f"promise {number} has no test: test_fault_{number:02}_NAME.py is missing")
        return found

    def words(self, file):
        """(promise, what the test does) as its docstring says."""
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        paragraphs = [" ".join(part.split()).replace("|", "\\|") for part in text.split("\n\n")]
        if len(paragraphs) != 2 or not all(part.endswith(".") for part in paragraphs):
            self.problems.append(f"{file.name}: its docstring is not a sentence, a blank line and what the test does")
            paragraphs = [*paragraphs, "", ""][:2]
        return paragraphs

    def in_ctest(self, file):
        listed = (self.tests / "CMakeLists.txt").read_text(encoding="utf-8")
        if f"({file.stem.removeprefix('test_')} " not in listed:
            self.problems.append(f"{file.name}: tests/faults/CMakeLists.txt does not run it")

    def table(self, results):
        lines = [*HEAD]
        for number, file in sorted(self.files().items()):
            promise, breaks = self.words(file)
            self.in_ctest(file)
            link = f"[`{file.name}`](../tests/faults/{file.name})"
            lines.append(f"| {number} | {promise} | {link} | {breaks} | {results.get(number, NEVER)} |")
        return lines

    def parts(self):
        """The document before, in and after the marks."""
        text = self.document.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            sys.exit(f"{self.document}: the marks of the table are missing")
        before, _, rest = text.partition(BEGIN)
        table, _, after = rest.partition(END)
        return before, table.strip().splitlines(), after


def results_in(lines):
    """{number: last result} of a table."""
    rows = [re.match(r"\| (\d+) \|.*\| ([^|]*) \|$", line) for line in lines]
    return {int(row.group(1)): row.group(2) for row in rows if row}


def without_result(line):
    return re.sub(r"(?<!\\)\|[^|]*\|$", "|", line)


def commit_of(root):
    def git(*words):
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "include", "tests")
    return (git("rev-parse", "--short=7", "HEAD") or "no commit") + (" and changes" if changed else "")


def results_of(junit, root):
    """{number: "12 passed, 1 skipped 2026-01-31 (abc1234)"} of the tests of each promise."""
    counts = collections.defaultdict(lambda: [0, 0, 0])
    tree = ElementTree.parse(junit)
    for case in tree.iter("testcase"):
        match = re.search(r"\bfault_(\d\d)_", case.get("name", ""))
        if match:
            passed, failed, reasons = of_case(case)
            total = counts[int(match.group(1))]
            total[:] = total[0] + passed, total[1] + failed, total[2] + len(reasons)
    suite = next(tree.iter("testsuite"))
    day = (suite.get("timestamp") or "")[:10]
    day = day or datetime.date.fromtimestamp(pathlib.Path(junit).stat().st_mtime).isoformat()
    made = f"{day} ({commit_of(root)})"
    names = ("passed", "failed", "skipped")
    said = {number: [f"{n} {name}" for n, name in zip(total, names, strict=True) if n] for number, total in counts.items()}
    return {number: f"{', '.join(parts)} {made}" for number, parts in said.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    parser.add_argument("--junit", type=pathlib.Path)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    options = parser.parse_args()

    tree = Trees(options.root)
    before, old, after = tree.parts()
    results = results_in(old)
    if options.junit:
        results |= results_of(options.junit, options.root)
    lines = tree.table(results)
    if options.check:
        if [without_result(line) for line in lines] != [without_result(line) for line in old]:
            tree.problems.append("docs/reliability.md: its table is not that of the tests; run promises.py --write")
    elif options.write:
        tree.document.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + after, encoding="utf-8")
    else:
        print("\n".join(lines))
    for problem in tree.problems:
        print(problem, file=sys.stderr)
    return 1 if tree.problems else 0


if __name__ == "__main__":
    sys.exit(main())
