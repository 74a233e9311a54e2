"""What a claim's runs say: numbers of each way over seeds, and which orderings held.

The rule: an ordering held when every seed of the better way is better than every seed of the worse one, so that their ranges do not
touch; it did not hold when the ranges lie the other way round; otherwise the difference is within the spread. One seed has no spread
and decides nothing, but for ways that no seed changes.
"""

import dataclasses
import math
import statistics

from .claims import USUAL
from .runs import Run

HELD, WITHIN, NOT, UNDECIDED = "held", "within the spread", "did not hold", "one seed: not decided"
HIGHER_IS_BETTER = ("accuracy", "margin")


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number of one way over seeds."""

    values: tuple

    @property
    def mean(self):
        return statistics.fmean(self.values)

    @property
    def low(self):
        return min(self.values)

    @property
    def high(self):
        return max(self.values)


def metric_of(result, name, dense):
    """mean: the geometric mean of the domains' perplexities. worst: the largest rise of one over the dense model's."""
    perplexity = result["perplexity"]
    if name == "mean":
        return geometric_mean(perplexity.values())
    if name == "worst":
        return max(perplexity[d] / dense["perplexity"][d] for d in perplexity)
    if name in HIGHER_IS_BETTER:
        return statistics.fmean(result[name].values())
    return perplexity[name]


def spread(results, name, dense):
    return Spread(tuple(metric_of(r, name, dense) for r in results))


def verdict(better, worse, higher, seeds):
    """Of two Spreads. `seeds` is how many the better and the worse way have, at least."""
    if higher:
        better, worse = (Spread(tuple(-v for v in s.values)) for s in (better, worse))
    if seeds < 2:
        return UNDECIDED
    if better.high < worse.low:
        return HELD
    if better.low > worse.high:
        return NOT
    return WITHIN


@dataclasses.dataclass(frozen=True)
class Row:
    way: str
    results: list  # of each seed
    runs: list  # their keys
    steps: int


@dataclasses.dataclass(frozen=True)
class Judged:
    ordering: object
    better: Spread
    worse: Spread
    verdict: str


def rows_of(claim, bench):
    """One Row for each way, or None while runs are missing."""
    rows = []
    for way in claim.ways:
        runs = [Run.of(way, seed, bench.settings, claim.decides) for seed in range(bench.settings.seeds if way.seeded else 1)]
        results = [bench.result(run) for run in runs]
        if None in results:
            return None
        rows.append(Row(way.name, results, [run.key for run in runs], way.prune.get("iterations", USUAL)))
    return rows


def judge(claim, rows, dense, seeds):
    by_name = {row.way: row.results for row in rows}
    found = []
    for ordering in claim.orderings:
        better, worse = (spread(by_name[w], ordering.metric, dense) for w in (ordering.better, ordering.worse))
        higher = ordering.metric in HIGHER_IS_BETTER
        found.append(Judged(ordering, better, worse, verdict(better, worse, higher, seeds)))
    return found


def metrics_of(claim, domains):
    """Names of the columns of a claim's table."""
    return [*domains, "mean", *(["worst"] if len(domains) > 1 else []), *(HIGHER_IS_BETTER if claim.decides else [])]
