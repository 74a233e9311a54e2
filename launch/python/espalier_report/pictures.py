"""The pictures of a report: a function for each, from what was read to a figure, or None."""

import itertools
from dataclasses import replace

import numpy as np

from . import drawing, facts
from .drawing import Bars, Grid, Histogram, Line, Matrix, Panel
from .run import KINDS, MEASURES

BINS = 1024  # columns of a heat map at most
STEPS = 80  # of a histogram
MOST_PAIRS = 6  # of domains, each a line; of more their mean
UNITS = {"kv_group": "KV group"}


def unit_of(run, kind):
    """What falls: for titles and axes."""
    return "channel" if kind == "mlp" else UNITS.get(run.plan.unit, "query head")


def titled(words):
    return words[0].upper() + words[1:]


def curves(run):
    """Perplexity, loss and shares of right answers against what is gone."""
    states = sorted((*run.states, *run.curve), key=lambda state: share(run, state))
    losses = [(share(run, state), loss) for state, loss in facts.calibrated(run)]
    perplexities = [(share(run, state), state.perplexity) for state in states]
    panels = [
        panel("Perplexity, held out", perplexities, "perplexity"),
        panel("Loss of the calibration data", losses, "nats per token"),
    ]
    accuracies = [(share(run, state), state.accuracy) for state in states]
    for metric in dict.fromkeys(metric for _, values in accuracies for _, metric in values):
        panels.append(accuracy_panel(metric, accuracies))
    marks = [share(run, size.state) for size in facts.worth_taking(run)]
    label = f"% of {MEASURES[run.measure][1]} removed"
    panels = [replace(one, x=label, marks=marks) for one in panels if one.lines]
    return drawing.lines(panels, columns=min(len(panels), 2)) if panels else None


def share(run, state):
    return 100 * state.sparsity[run.measure]


def panel(title, points, y):
    """A line for each name of [(x, {name: value})]."""
    names = dict.fromkeys(name for _, values in points for name in values)
    lines = []
    for name in names:
        known = [(x, values[name]) for x, values in points if name in values]
        lines.append(Line(name, *zip(*known)))
    values = [value for line in lines for value in line.mean]
    wide = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    return Panel(title, lines, y=y, log=wide)


def accuracy_panel(metric, points):
    """Shares of right answers with one standard error to either side."""
    lines = []
    for name in dict.fromkeys(task for _, values in points for task, m in values if m == metric):
        known = [(x, *values[name, metric]) for x, values in points if (name, metric) in values]
        x, mean, error = zip(*known)
        error = np.array([e or 0.0 for e in error])
        lines.append(Line(name, x, mean, np.array(mean) - error, np.array(mean) + error))
    return Panel(f"Share of right answers, {metric}", lines, y="share")


def removal(run):
    """Layer x unit by the iteration of removal: by number, and in the order in which they fell."""
    top = run.plan.iteration
    by_number, in_order = [], []
    for kind in KINDS:
        matrix = run.plan.removed_at[kind]
        if not matrix.shape[1]:
            continue
        times = np.where(matrix < 0, top + 1, matrix).astype(np.float64)
        unit, width = unit_of(run, kind), matrix.shape[1]
        words = f"{unit}s by number" + (f", {bin_width(width)} a column" if width > BINS else "")
        by_number.append(Grid(titled(words), binned(times), unit, extent=width))
        ordered = binned(np.sort(times, axis=1))
        in_order.append(Grid(titled(f"{unit}s as they fell"), ordered, f"{unit}s", extent=width))
    grids = by_number + in_order
    if not grids or top < 1:
        return None
    return drawing.heatmap(grids, top, "iteration of removal", columns=len(by_number))


def bin_width(width):
    return -(-width // BINS)


def binned(matrix):
    """Means of neighbouring columns, so that BINS are left at most."""
    layers, width = matrix.shape
    step = bin_width(width)
    if step == 1:
        return matrix
    whole = width // step * step
    means = matrix[:, :whole].reshape(layers, -1, step).mean(axis=2)
    rest = matrix[:, whole:]
    return np.hstack([means, rest.mean(axis=1, keepdims=True)]) if rest.size else means


def kept(run):
    """Units that each layer keeps."""
    panels = []
    for kind in KINDS:
        matrix = run.plan.removed_at[kind]
        left, unit = (matrix < 0).sum(axis=1), unit_of(run, kind)
        whole = np.full(len(left), matrix.shape[1])
        panels.append(Bars(titled(f"{unit}s kept"), left, whole, "layer", f"{unit}s"))
    return drawing.bars(panels, columns=2)


def scores(run):
    """How scores are distributed, and where the cut went, in the oldest and the newest commit."""
    panels = []
    one_list = run.word("prune", "ranking") == "global"
    for commit in run.scores:
        fallen = {kind: fell_now(commit, kind) for kind in commit.lists}
        highest = {k: s[f].max() for k, f in fallen.items() if (s := commit.lists[k][2])[f].size}
        for kind, (_, _, score) in commit.lists.items():
            cut = max(highest.values(), default=None) if one_list else highest.get(kind)
            title = f"Iteration {commit.iteration}: {unit_of(run, kind)}s"
            panels.append(histogram(title, score, fallen[kind], cut))
    return drawing.histograms(panels, columns=2) if panels else None


def fell_now(commit, kind):
    layer, unit, _ = commit.lists[kind]
    return commit.removed_at[kind][layer, unit] == commit.iteration


def histogram(title, score, fell, cut):
    """Powers of ten where all scores are above 0 and far apart, else as they are."""
    positive = score[score > 0]
    wide = len(positive) > 0 and score.min() >= 0 and positive.min() < 0.05 * positive.max()
    label = "log10 of the score" if wide else "score"
    if wide and len(positive) < len(score):
        label += f" ({len(score) - len(positive):,} are 0)"
    shown, removed = (positive, fell[score > 0]) if wide else (score, fell)
    place = cut if cut is not None and (cut > 0 or not wide) else None
    if wide:
        shown, place = np.log10(shown), place and np.log10(place)
    edges = edges_of(shown, place)
    counts = {
        "kept": np.histogram(shown[~removed], edges)[0],
        "removed in this iteration": np.histogram(shown[removed], edges)[0],
    }
    cuts = [] if place is None else [(place, "highest removed")]
    return Histogram(title, edges, counts, cuts, label, "units")


def edges_of(values, cut):
    """Equal steps over all values, one of which begins right behind the cut."""
    steps = int(np.clip(2 * np.sqrt(len(values)), 10, STEPS))
    low, high = values.min(), values.max()
    width = (high - low) / steps if high > low else max(abs(high), 1e-300) * 1e-3
    begin = low if cut is None else np.nextafter(cut, np.inf)
    first, last = np.floor((low - begin) / width), np.ceil((high - begin) / width)
    edges = begin + width * np.arange(first, last + 1)
    # What rounding left outside.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def overlap_matrices(run):
    """Domain x domain of the last iteration that was recorded."""
    iteration, kinds = run.overlap["iterations"][-1]
    names, words = run.overlap["domains"], {"attention": "attention", "mlp": "channels"}
    return drawing.matrices(
        [Matrix(f"Iteration {iteration}: {words[kind]}", names, kinds[kind][0]) for kind in KINDS]
    )


def overlap_lines(run):
    """Pairs of domains over layers, and over iterations where several were recorded."""
    names, recorded = run.overlap["domains"], run.overlap["iterations"]
    pairs = list(itertools.combinations(range(len(names)), 2))
    iteration, last = recorded[-1]
    panels = []
    for kind, words in (("attention", "Attention"), ("mlp", "Channels")):
        title = f"{words} of each layer, iteration {iteration}"
        panels.append(pairs_panel(title, names, pairs, last[kind][1], "layer"))
    if len(recorded) > 1:
        x = [number for number, _ in recorded]
        for kind, words in (("attention", "Attention"), ("mlp", "Channels")):
            matrices = np.array([kinds[kind][0] for _, kinds in recorded])
            title = f"{words} of all layers"
            panels.append(pairs_panel(title, names, pairs, matrices, "iteration", x))
    panels = [one for one in panels if one.lines]
    return drawing.lines(panels, columns=2) if panels else None


def pairs_panel(title, names, pairs, matrices, label, x=None):
    """Pairs of domains over matrices [n, domain, domain]: a line each, or the mean of many with a
    band from the least to the most alike."""
    x = np.arange(len(matrices)) if x is None else x
    values = [matrices[:, a, b] for a, b in pairs] if len(matrices) else []
    lines = [Line(f"{names[a]}, {names[b]}", x, one) for (a, b), one in zip(pairs, values)]
    if len(lines) > MOST_PAIRS:
        known = np.ma.masked_invalid(values)
        mean, low, high = (f(axis=0).filled(np.nan) for f in (known.mean, known.min, known.max))
        lines = [Line(f"mean of {len(pairs)} pairs", x, mean, low, high)]
    return Panel(title, lines, label, "Jaccard index")


def phases(run):
    """Time of each iteration, by phase."""
    names = [row[0] for row in facts.phases_table(run)[0]]
    if not names:
        return None
    x = [state.iteration for state in run.states]
    parts = {name: [state.seconds.get(name, 0.0) for state in run.states] for name in names}
    return drawing.stacks("Seconds of each iteration", x, parts, "iteration", "seconds")
