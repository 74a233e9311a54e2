"""The page: a template, the tables, and the pictures as parts of it."""

import base64
import os

import jinja2
from espalier_launch.stop import CANNOT_CREATE, Stop, printable, stop_of

from . import drawing, facts, pictures
from .run import read_run

MARKER = "espalier report"  # in the head of every report: what may be replaced
SECTIONS = (
    ("summary", "Before and after"),
    ("refit", "After the refit"),
    ("curves", "Loss against size"),
    ("removal", "What fell, and when"),
    ("kept", "What each layer keeps"),
    ("scores", "Scores and the cut"),
    ("overlap", "How alike the domains are"),
    ("time", "Time"),
    ("configuration", "Configuration"),
)


def shown(value):
    """Text of the user in a page: what no screen can show stands as an escape, lines stay."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(printable(line.replace("\t", "    ")) for line in value.split("\n"))


def render(run):
    """The page of a run as text; the same run gives the same text."""
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    phase_rows, total = facts.phases_table(run)
    absent = [name for name, part in (("overlap", run.overlap), ("refit", run.refit)) if not part]
    return environment.get_template("page.html").render(
        marker=MARKER,
        name=os.path.basename(os.path.abspath(run.path)),
        run=run,
        facts=facts,
        state=facts.state_text(run),
        sections=[s for s in SECTIONS if s[0] not in absent],
        pictures=drawn(run),
        binned=run.plan and any(m.shape[1] > pictures.BINS for m in run.plan.removed_at.values()),
        unit=pictures.unit_of(run, "attention") if run.plan else "",
        size_rows=size_rows(run),
        layer_rows=layer_rows(run),
        margins=margins(run),
        rounding=rounding(run),
        most_pairs=pictures.MOST_PAIRS,
        phase_rows=phase_rows,
        total=total,
    )


def drawn(run):
    """{id: picture as the address of an image, or None}."""
    some = run.states or run.curve
    figures = {
        "curve-lines": pictures.curves(run) if some else None,
        "removal-map": pictures.removal(run) if run.plan else None,
        "kept-bars": pictures.kept(run) if run.plan else None,
        "score-histograms": pictures.scores(run),
        "overlap-matrices": pictures.overlap_matrices(run) if run.overlap else None,
        "overlap-lines": pictures.overlap_lines(run) if run.overlap else None,
        "phase-stacks": pictures.phases(run),
    }
    return {name: figure and address(drawing.svg(figure)) for name, figure in figures.items()}


def address(text):
    """A picture inside the page: as an image of its own its parts cannot be mixed with others'."""
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def size_rows(run):
    rows = []
    for size in facts.worth_taking(run):
        state = size.state
        rows.append(
            (
                repr(float(state.target)),  # all digits: in a large model the tenth may be a unit
                *(facts.percent(state.sparsity[m]) for m in state.sparsity),
                f"{state.counts['parameters']:,}",
                size.held_out.text if size.held_out else "–",
                size.calibration.text if size.calibration else "–",
                ", ".join(size.reasons),
            )
        )
    return rows


def layer_rows(run):
    if not run.plan:
        return []
    heads, channels = (run.plan.removed_at[kind] < 0 for kind in ("attention", "mlp"))
    rows = []
    for layer in range(len(heads)):
        row = [str(layer)]
        for kept in (heads[layer], channels[layer]):
            share = facts.percent(kept.mean()) if kept.size else "–"
            row += [f"{kept.sum():,} of {kept.size:,}", share]
        rows.append(row)
    return rows


def margins(run):
    wanted = {commit.iteration for commit in run.scores}
    found = [s for s in run.states if s.iteration in wanted and s.margin is not None]
    return ", ".join(f"iteration {s.iteration}: {s.margin:.3g}" for s in found)


def rounding(run):
    """What whole multiples of channels removed more than single ones, over all iterations; empty where all were single."""
    found = [s.rounding for s in run.states if {"importance", "free_importance"} <= s.rounding.keys()]
    importance, free = (sum(one[name] for one in found) for name in ("importance", "free_importance"))
    return f"{(importance - free) / abs(free):+.2%}" if free else ""


def write(args):
    """Reads the run, writes the page and returns the path of it."""
    out = args.out or os.path.join(args.run, "report.html")
    if os.path.isdir(args.run):
        require_replaceable(out)
    text = render(read_run(args.run, args.curve)).encode("utf-8", "backslashreplace")
    folder, name = os.path.split(out)
    fresh = os.path.join(folder, f".{name}.tmp-{os.getpid()}")
    try:
        try:
            with open(fresh, "xb") as file:
                file.write(text)
            os.replace(fresh, out)
        finally:
            if os.path.lexists(fresh):
                os.unlink(fresh)
    except FileNotFoundError as error:
        raise Stop(
            CANNOT_CREATE,
            f"cannot create '{out}'",
            error.strerror,
            f"mkdir -p '{folder or '.'}', or choose another path with --out",
        )
    except OSError as error:
        raise stop_of(error, out, writing=True)
    return out


def require_replaceable(path):
    """Nothing but an earlier report is written over."""
    try:
        with open(path, "rb") as file:
            begin = file.read(400)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        begin = b""
    except OSError as error:
        raise stop_of(error, path)
    if f'content="{MARKER}"'.encode() not in begin:
        raise Stop(
            CANNOT_CREATE,
            f"'{path}' exists",
            "it is no report, and nothing else is replaced",
            "choose another path with --out",
        )
