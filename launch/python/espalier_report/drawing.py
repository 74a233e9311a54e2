"""Pictures of numbers, drawn by matplotlib without a display: the same numbers give the same bytes.

Nothing here knows what a run is. A function takes what a picture shows and returns a figure; svg()
makes it text. Arrays are drawn as wholes, so a picture of millions of numbers takes as long as its
pixels.
"""

import io
import logging
import math
import warnings
from dataclasses import dataclass, field

# A cache of fonts that cannot be kept is no matter for the user.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator  # noqa: E402

WIDTH = 11.0  # inches; pages show it as wide as their text
TOP = 0.35  # inches of a figure beside its rows of panels: the legend
INK, FAINT, GRID = "#24292f", "#57606a", "#d8dee4"
KEPT = "#e6e8eb"
# Okabe and Ito's colours, which people who see few colours tell apart; the darkest of them first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#666666")
DASHES = ("-", "--", ":", "-.")
LABEL = 60  # characters of a title and beside an axis
MARKED_POINTS = 40  # of a line: with more of them it has no markers

# What a matplotlibrc of the user says does not change our pictures.
matplotlib.rcdefaults()
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "espalier",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # matplotlib brings it along
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "axes.labelcolor": FAINT,
        "axes.edgecolor": "#afb8c1",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.formatter.useoffset": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "text.parse_math": False,  # a name with dollars in it is no formula
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
        "figure.constrained_layout.use": True,
    }
)


@dataclass(frozen=True)
class Line:
    """A mean over x, with a band from low to high where both are known. Not a number: a gap."""

    name: str
    x: object
    mean: object
    low: object = None
    high: object = None


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes. `marks` are places of x that a dotted line shows."""

    title: str
    lines: list
    x: str = ""
    y: str = ""
    marks: list = field(default_factory=list)
    log: bool = False  # the axis of y


@dataclass(frozen=True)
class Grid:
    """A matrix as colours: a row a layer. What is above `top` is KEPT; not a number: nothing."""

    title: str
    values: object
    x: str = ""
    y: str = "layer"
    extent: float = 0.0  # what the columns span together; 0: as many as there are


@dataclass(frozen=True)
class Bars:
    """A bar for each number, before a pale one for what it is a part of."""

    title: str
    values: object
    wholes: object = None
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Histogram:
    """How many of what lie between edges: {name: counts}; `cuts` are [(value, words)]."""

    title: str
    edges: object
    counts: dict
    cuts: list = field(default_factory=list)
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Matrix:
    """Names against names, each cell with its number."""

    title: str
    names: list
    values: object


def shortened(text, length=28):
    """A name of the user that is too long for a picture, without its middle."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def svg(figure):
    """The figure as SVG text, without the date and without the name of what drew it."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _axes(panels, height, columns=None, width=WIDTH):
    """A figure and one pair of axes for each panel, in rows of `columns`."""
    columns = columns or min(len(panels), 3)
    columns = max(1, min(columns, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(width, rows * height + TOP))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[len(panels) :]:
        spare.set_axis_off()
    for panel, axes in zip(panels, grid):
        axes.set_title(shortened(panel.title, LABEL))
    return figure, grid[: len(panels)]


def _looks(names):
    """{name: (colour, dashes)}: one name looks the same in all panels of a figure."""
    looks = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
    return {name: looks[i % len(looks)] for i, name in enumerate(dict.fromkeys(names))}


def _legend(figure, handles):
    """One legend below all panels, unless there is nothing to tell apart."""
    if len(handles) > 1 or any(handles):
        words = [shortened(name) for name in handles]
        figure.legend(handles.values(), words, loc="outside lower center", ncols=min(len(words), 5))


def lines(panels, columns=None, height=2.7):
    """Panels of lines side by side, with one legend."""
    figure, grid = _axes(panels, height, columns)
    looks, handles = _looks(line.name for panel in panels for line in panel.lines), {}
    for panel, axes in zip(panels, grid):
        for line in panel.lines:
            colour, dashes = looks[line.name]
            x, mean = np.asarray(line.x, float), np.asarray(line.mean, float)
            marker = "o" if len(x) <= MARKED_POINTS else None
            (drawn,) = axes.plot(x, mean, dashes, color=colour, marker=marker, markersize=3.2)
            handles.setdefault(line.name, drawn)
            if line.low is not None and line.high is not None:
                low, high = np.asarray(line.low, float), np.asarray(line.high, float)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        for place in panel.marks:
            axes.axvline(place, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_xlabel(shortened(panel.x, LABEL))
        axes.set_ylabel(shortened(panel.y, LABEL))
        _span(axes, [x for line in panel.lines for x in line.x])
        if panel.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        if all(np.equal(np.mod(line.x, 1), 0).all() for line in panel.lines):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, handles)
    return figure


def _span(axes, x):
    """All of x, also where a line has a gap."""
    if len(x):
        low, high = min(x), max(x)
        room = 0.03 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)


def heatmap(grids, top, label, kept="kept", height=2.9, columns=None):
    """Matrices as colours from 1 to `top`; whatever is above it is what was `kept`."""
    figure, places = _axes(grids, height, columns or len(grids))
    colours = matplotlib.colormaps["viridis"].with_extremes(over=KEPT, bad="white")
    scale = matplotlib.colors.Normalize(1, max(top, 1 + 1e-9))
    for grid, axes in zip(grids, places):
        values = np.asarray(grid.values, float)
        rows, width = values.shape
        # A column that is one unit has its number below its middle.
        begin, end = (-0.5, width - 0.5) if grid.extent in (0, width) else (0, grid.extent)
        span = (begin, end, rows - 0.5, -0.5)
        axes.imshow(values, colours, scale, aspect="auto", interpolation="nearest", extent=span)
        axes.set_xlabel(shortened(grid.x, LABEL))
        axes.set_ylabel(shortened(grid.y, LABEL))
        axes.grid(False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    mapped = matplotlib.cm.ScalarMappable(scale, colours)
    bar = figure.colorbar(mapped, ax=list(places), extend="max", fraction=0.03, pad=0.012)
    bar.locator = MaxNLocator(integer=True, nbins=8)
    bar.set_label(f"{label} (grey: {kept})")
    bar.outline.set_visible(False)
    return figure


def bars(panels, columns=None, height=2.5):
    """A bar for each number of each panel, counted from 0."""
    figure, grid = _axes(panels, height, columns)
    for panel, axes in zip(panels, grid):
        values = np.asarray(panel.values, float)
        places = np.arange(len(values))
        if panel.wholes is not None:
            axes.bar(places, np.asarray(panel.wholes, float), width=0.8, color=KEPT)
        axes.bar(places, values, width=0.8, color=COLOURS[0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axes.set_xlim(-0.6, max(len(values), 1) - 0.4)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(shortened(panel.x, LABEL))
        axes.set_ylabel(shortened(panel.y, LABEL))
    return figure


def stacks(title, x, parts, x_label="", y_label="", height=2.7):
    """The parts {name: values} of each x on top of each other; x counts up by one."""
    figure, (axes,) = _axes([Panel(title, [])], height)
    looks, handles = _looks(parts), {}
    x = np.asarray(x, float)
    edges = np.append(x - 0.5, x[-1:] + 0.5)
    floor = np.zeros(len(x))
    for name, values in parts.items():
        top, colour = floor + np.asarray(values, float), looks[name][0]
        handles[name] = axes.stairs(top, edges, baseline=floor, fill=True, color=colour)
        floor = top
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, min_n_ticks=1))
    if len(x):
        axes.set_xlim(edges[0] - 0.1, edges[-1] + 0.1)
    axes.set_xlabel(shortened(x_label, LABEL))
    axes.set_ylabel(shortened(y_label, LABEL))
    _legend(figure, handles)
    return figure


def histograms(panels, columns=None, height=2.7):
    """Counts between edges as filled steps; a cut is a dotted line with its words."""
    figure, grid = _axes(panels, height, columns)
    looks, handles = _looks(name for panel in panels for name in panel.counts), {}
    for panel, axes in zip(panels, grid):
        for name, counts in panel.counts.items():
            colour = looks[name][0]
            area = axes.stairs(counts, panel.edges, fill=True, color=colour, alpha=0.55)
            handles.setdefault(name, area)
            axes.stairs(counts, panel.edges, color=colour, linewidth=0.9)
        for value, words in panel.cuts:
            axes.axvline(value, color=INK, linewidth=1.0, linestyle="--")
            axes.annotate(
                shortened(words),
                (value, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color=INK,
            )
        axes.margins(x=0.01)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel(shortened(panel.x, LABEL))
        axes.set_ylabel(shortened(panel.y, LABEL))
    _legend(figure, handles)
    return figure


def matrices(panels, columns=None, height=None):
    """Matrices of numbers from 0 to 1, each number in its cell; not a number: a dash."""
    cells = max(len(panel.names) for panel in panels)
    side = min(4.6, max(2.4, 0.55 * cells + 1.4))
    width = min(WIDTH, 1.5 * side * len(panels))
    figure, grid = _axes(panels, height or side, columns, width)
    for panel, axes in zip(panels, grid):
        values = np.asarray(panel.values, float)
        names = [shortened(name, 16) for name in panel.names]
        axes.imshow(values, "Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        if cells > 12:
            continue
        for (row, column), value in np.ndenumerate(values):
            text = "–" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if value > 0.6 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour)
    return figure
