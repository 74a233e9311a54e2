"""A plot for each claim: over steps, or over what was removed; a line for each way, a band over its seeds."""

import math

from espalier_report.drawing import Line, Panel, lines, svg

from .page import TITLES
from .verdicts import HIGHER_IS_BETTER, metric_of, spread


def words(metric):
    return TITLES.get(metric, f"perplexity, {metric}")


def over_steps(section, dense, metrics, target):
    """Claim 1: how far more steps help."""
    x = [math.log2(row.steps) for row in section.rows]
    panels = []
    for metric in metrics:
        values = [spread(row.results, metric, dense) for row in section.rows]
        line = Line(f"{target:.0%} removed", x, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
        panels.append(Panel(words(metric), [line], x="log2 of the number of steps"))
    return panels


def over_sizes(section, dense, metrics):
    """Every way's smaller plans; the dense model is where all lines begin."""
    return [Panel(words(metric), [way_line(row, metric, dense) for row in section.rows], x="decoder parameters removed, %",
                  log=metric not in HIGHER_IS_BETTER) for metric in metrics]


def way_line(row, metric, dense):
    points = [p for p in zip(*(result["points"] for result in row.results)) if metric not in HIGHER_IS_BETTER or metric in p[0]]
    values = [spread(point, metric, dense) for point in points]
    begin = metric_of(dense, metric, dense)
    x = [0.0, *(100 * sum(p["removed"] for p in point) / len(point) for point in points)]
    return Line(row.way, x, *([begin, *(getattr(v, end) for v in values)] for end in ("mean", "low", "high")))


def picture(section, dense, settings):
    """SVG text."""
    metrics = [*settings.domains, "mean"]
    if section.claim.decides:
        metrics = ["accuracy", "mean"]
    steps = section.claim.number == 1
    panels = over_steps(section, dense, metrics, settings.target) if steps else over_sizes(section, dense, metrics)
    return svg(lines(panels, columns=2))
