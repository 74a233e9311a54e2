"""The command line of launch/report.py."""

import argparse

from espalier_launch.program import Parser

EXAMPLES = """\
examples:
  # runs/a/report.html
  launch/report.py runs/a

  # with the sizes that `espalier eval runs/a --sparsity 0.1,0.2,0.3 --out curve.json` measured
  launch/report.py runs/a --curve curve.json --out a.html

The page needs no network and no other file. A run that is under way, or that ended early, is shown
as far as it is. docs/report.md says what the page shows.
"""


def make_parser():
    parser = Parser(
        prog="launch/report.py",
        description="Writes what a run directory holds as one page of HTML.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where to write (default: RUN/report.html). A report that is there is replaced, "
        "nothing else",
    )
    parser.add_argument(
        "--curve",
        action="append",
        default=[],
        metavar="FILE",
        help="sizes of this run that `espalier eval RUN --sparsity ... --out FILE` measured; may "
        "be repeated",
    )
    return parser
