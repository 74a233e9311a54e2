"""strace around the program: which calls of the system it makes, and what becomes of it when one of them fails."""

import re
import shutil
import subprocess
import sys

NAMES = "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat"


def require_strace(case):
    if not shutil.which("strace"):
        case.skipTest("strace is not installed")
    if subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True).returncode != 0:
        case.skipTest("calls cannot be traced here (ptrace is forbidden)")


def traced(log, calls, inject=None):
    """Words before the program: its calls of these kinds go to `log`; `inject` is as strace takes it: mkdir:error=EEXIST."""
    injected = ["-e", f"inject={inject}"] if inject else []
    return ["strace", "-f", "-s", "4096", "-o", str(log), "-e", f"trace={calls}", *injected]


def calls_in(log):
    """[(name of a call, its arguments and result)] in their order."""
    return re.findall(r"^(?:\d+ +)?(\w+)\((.*)$", log.read_text(errors="backslashreplace"), re.MULTILINE)


def measured(log):
    """Words before the program, of one rank: the most memory that it held, in KiB, goes to `log`.

    A small process in between: what a child is said to have held includes what its parent held when it began.
    """
    script = (
        "import os, resource, sys; code = os.spawnvp(os.P_WAIT, sys.argv[2], sys.argv[2:]);"
        "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss));"
        "sys.exit(code if code >= 0 else 128 - code)"
    )
    return [sys.executable, "-S", "-c", script, str(log)]


def memory_in(log):
    return int(log.read_text())
