#!/usr/bin/env python3
"""Writes what a run directory holds as one page of HTML (docs/report.md)."""

import os
import sys

# Our own folder must not be a place where Python looks: tokenize.py beside this file bears the name
# of a module of the standard library.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _HERE]
sys.path.insert(0, os.path.join(_HERE, "python"))

from espalier_launch import program, stop  # noqa: E402
from espalier_report.arguments import make_parser  # noqa: E402


def main(argv=None):
    def work():
        args = make_parser().parse_args(argv)
        try:
            from espalier_report import page
        except ImportError as error:
            raise stop.missing_package("a Python package is missing", error)
        out = page.write(args)
        program.say(stop.printable(out), out)

    return program.finish("report", work, lambda: "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
