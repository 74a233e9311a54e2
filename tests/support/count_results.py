"""Counts test results for launch/test.sh: prints "passed failed skipped", a tab and the reasons of skips.

    count_results.py ctest JUNIT.xml        as `ctest --output-junit` writes it
    count_results.py unittest OUTPUT.txt... what `python -m unittest -v` printed
    count_results.py failures JUNIT.xml     no counts: each test of CTest that failed, and how, in a few lines

A GoogleTest program is one test of CTest but holds many: their skips are read from its output, so that
none stays unseen.
"""
import collections
import re
import sys
import xml.etree.ElementTree as ElementTree

# GoogleTest prints "file:line: Skipped", then the reason; our main for many ranks puts "[rank 0] " before.
SKIPPED = re.compile(r"^(?:\[rank \d+\] )?\S+:\d+: Skipped\n(.*)$", re.MULTILINE)
# A line of ours may follow the marks of unittest.
OK = re.compile(r"^[.FEsx]*\[       OK \] ", re.MULTILINE)
FAILED = re.compile(r"^[.FEsx]*\[  FAILED  \] .*\(\d+ ms\)$", re.MULTILINE)
UNITTEST_FAILURE = re.compile(r"^=+\n((?:FAIL|ERROR): .*)\n(?:.*\n)*?-+\n((?:.*\n)+?)(?=\n=|\n-)", re.MULTILINE)
GTEST_FAILURE = re.compile(r"^(?:\[rank \d+\] )?(\S+:\d+: Failure\n(?:.+\n){1,6})", re.MULTILINE)
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests?", re.MULTILINE)
UNITTEST_SKIPPED = re.compile(r"\.\.\. skipped ['\"](.*)['\"]$", re.MULTILINE)


def of_case(case):
    """(passed, failed, [reasons of skips]) of one test of CTest, which may hold many."""
    text = case.findtext("system-out") or ""
    status = case.get("status")
    mark = case.find("skipped")
    # "notrun" also means that the program is missing: nobody asked for that.
    asked = mark is not None and mark.get("message", "").startswith("SKIP_")
    reasons = [reason.strip() or "no reason given" for reason in SKIPPED.findall(text)]
    reasons += UNITTEST_SKIPPED.findall(text)
    ran = UNITTEST_RAN.search(text)
    if status == "notrun" and asked:
        return 0, 0, reasons or ["no reason given"]
    if status == "run" and OK.search(text):
        return len(OK.findall(text)), 0, reasons
    if status == "run" and ran:
        return int(ran.group(1)) - len(reasons), 0, reasons
    if status == "run":
        return 0 if reasons else 1, 0, reasons
    return len(OK.findall(text)), len(FAILED.findall(text)) or 1, reasons


def from_ctest(path):
    passed, failed, skipped, skips = 0, 0, 0, collections.Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        counts = of_case(case)
        if counts[1]:
            print(f"failed: {case.get('name')}", file=sys.stderr)
        passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + len(counts[2])
        skips.update(counts[2])
    return passed, failed, skipped, skips


def how_it_failed(text):
    """The failures that unittest or GoogleTest told of, each cut to its end or its beginning; else the last lines."""
    found = [f"{name}\n" + "\n".join(trace.rstrip().splitlines()[-12:]) for name, trace in UNITTEST_FAILURE.findall(text)]
    found += [failure.rstrip() for failure in GTEST_FAILURE.findall(text)]
    return found[:4] or ["\n".join(text.rstrip().splitlines()[-12:])]


def show_failures(path):
    for case in ElementTree.parse(path).iter("testcase"):
        if not of_case(case)[1]:
            continue
        text = case.findtext("system-out") or "no output"
        for failure in how_it_failed(text):
            print(f"{case.get('name')}: " + "\n  ".join(line[:400] for line in failure.splitlines()))


def from_unittest(path):
    text = open(path, encoding="utf-8", errors="replace").read()
    ran = UNITTEST_RAN.search(text)
    if not ran:
        return 0, 1, 0, collections.Counter()
    end = text[ran.end():]
    counts = {key: int(value) for key, value in re.findall(r"(failures|errors|skipped|unexpected successes)=(\d+)", end)}
    failed = counts.get("failures", 0) + counts.get("errors", 0) + counts.get("unexpected successes", 0)
    if failed == 0 and not re.search(r"^OK", end, re.MULTILINE):
        failed = 1
    skipped = counts.get("skipped", 0)
    skips = collections.Counter(UNITTEST_SKIPPED.findall(text))
    return max(int(ran.group(1)) - failed - skipped, 0), failed, skipped, skips


def main():
    if sys.argv[1] == "failures":
        return show_failures(sys.argv[2])
    count = {"ctest": from_ctest, "unittest": from_unittest}[sys.argv[1]]
    passed, failed, skipped, skips = 0, 0, 0, collections.Counter()
    for path in sys.argv[2:]:
        counts = count(path)
        passed, failed, skipped = passed + counts[0], failed + counts[1], skipped + counts[2]
        skips += counts[3]
    reasons = "; ".join(f"{reason} ({count})" for reason, count in skips.most_common(6))
    print(f"{passed} {failed} {skipped}\t{reasons}")


if __name__ == "__main__":
    main()
