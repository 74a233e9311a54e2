"""A program from its command line to its exit code."""

import argparse
import os
import signal
import sys
import traceback

from . import stop
from .stop import Stop


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as a Stop; `prog` is the path that a user types."""

    def error(self, message):
        raise Stop(stop.USAGE, "the command line is wrong", message, f"see {self.prog} --help")


def finish(name, work, left):
    """Does the work and returns the exit code. What ends it early is one message on stderr; left()
    says in words what an interrupted program leaves behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupted)
    try:
        work()
    except Stop as problem:
        print(problem.block(name), file=sys.stderr)
        return problem.code
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted, {stop.printable(left())}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except Exception as error:
        traceback.print_exc()
        bug = Stop(
            stop.BUG,
            "this is a bug",
            f"{type(error).__name__}: {error}",
            "please report it with the lines above and the command",
        )
        print(bug.block(name), file=sys.stderr)
        return stop.BUG
    return 0


def interrupted(number, _frame):
    raise KeyboardInterrupt(number)


def say(text, path):
    """Prints the summary of what lies complete at `path`."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Python would try again to write what is left of it when it ends.
        sys.stdout = open(os.devnull, "w")
        raise Stop(
            stop.WRITE_FAILED,
            "the summary could not be printed",
            error.strerror,
            f"nothing: '{path}' is complete",
        )
