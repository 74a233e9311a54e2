"""What the papers claim, as lists: claims, the ways that each compares, and the orderings that it states.

A way is what it changes of the base configuration (runs.py). Ways that change the same are the same runs, whichever claims name them.
"""

import dataclasses

GISP, DOMAINS, HERE = "arXiv 2510.18030", "arXiv 2601.02674", "our own"
STEPS = (1, 2, 4, 8, 16, 32)
USUAL = 8  # steps where a claim is not about them


@dataclasses.dataclass(frozen=True)
class Way:
    """One row of a table. `data` names what is calibrated on: every text, one domain's text, items or answers."""

    name: str
    importance: dict = dataclasses.field(default_factory=dict)
    prune: dict = dataclasses.field(default_factory=dict)
    calibration: dict = dataclasses.field(default_factory=dict)
    data: str = "texts"
    seeded: bool = True  # False: no seed changes anything, one run serves all of them


@dataclasses.dataclass(frozen=True)
class Ordering:
    """`better` is better than `worse` by `metric`, says `source`."""

    better: str
    worse: str
    metric: str
    source: str


@dataclasses.dataclass(frozen=True)
class Claim:
    number: int
    title: str
    ways: tuple
    orderings: tuple
    decides: bool = False  # multiple choice is evaluated too
    note: str = ""


def steps(n):
    return Way(f"{n} step{'s' * (n > 1)}", prune={"iterations": n})


def iterations():
    ways = tuple(steps(n) for n in STEPS)
    pairs = [(ways[-1], ways[0]), *zip(ways[1:], ways)]
    return Claim(1, "Iterative against one-shot", ways, tuple(Ordering(a.name, b.name, "mean", GISP) for a, b in pairs))


def rankings():
    ways = (Way("global"), Way("global_by_kind", prune={"ranking": "global_by_kind"}), Way("local", prune={"ranking": "local"}))
    return Claim(2, "One list over all layers against a list per layer", ways, (Ordering("global", "local", "mean", GISP),))


def criteria():
    local = {"ranking": "local"}
    ways = (
        Way("taylor"),
        Way("taylor_gate_sample", {"criterion": "taylor_gate_sample"}),
        Way("wanda_sp", {"criterion": "wanda_sp", "normalization": "none"}, local),
        Way("wanda_sp, global", {"criterion": "wanda_sp", "normalization": "none"}),
        Way("flap", {"criterion": "flap", "normalization": "none"}),
        Way("magnitude", {"criterion": "magnitude", "normalization": "param_mean"}, {"iterations": 1}, seeded=False),
        Way("random", {"criterion": "random", "normalization": "none"}, {"iterations": 1}),
        Way("taylor, local", prune=local),
    )
    published = ("wanda_sp", "flap", "magnitude", "random")
    orderings = [Ordering(a, b, "mean", GISP) for a in ("taylor", "taylor_gate_sample") for b in published]
    orderings += [Ordering("taylor", "wanda_sp, global", "mean", HERE), Ordering("taylor, local", "wanda_sp", "mean", HERE)]
    note = ("`wanda_sp` is ranked per layer, as its authors do; `flap` over all layers; both are scored anew in every step. `wanda_sp, global` and `taylor, local` "
            "tell what the criterion does and what the ranking. "
            "`magnitude` and `random` do not look at data: one step. `random` is ranked as drawn (`normalization: none`), so heads and "
            "channels fall in proportion.")
    return Claim(3, "Criteria", ways, tuple(orderings), note=note)


def decisions():
    ways = (Way("perplexity"), Way("answers", data="answers"), Way("margin", data="items"))
    orderings = (Ordering("margin", "perplexity", "accuracy", GISP), Ordering("margin", "perplexity", "margin", HERE),
                 Ordering("margin", "answers", "accuracy", HERE), Ordering("perplexity", "margin", "mean", HERE))
    note = ("The task: which of four continuations is the text's own. `perplexity` calibrates on text rows, `answers` on the right "
            "continuations alone (objective `sft`), `margin` on right against wrong ones. Items of evaluation come from other documents.")
    return Claim(4, "Calibration by perplexity against margin, on a decision task", ways, orderings, decides=True, note=note)


def hybrid(domains):
    ways = (Way("hybrid"), *(Way(f"{d} only", data=d) for d in domains))
    orderings = [Ordering("hybrid", f"{d} only", "mean", DOMAINS) for d in domains]
    orderings += [Ordering("hybrid", f"{other} only", d, DOMAINS) for d in domains for other in domains if other != d]
    orderings += [Ordering(f"{d} only", "hybrid", d, HERE) for d in domains]
    note = "Every way calibrates on as many rows in all."
    return Claim(5, "A hybrid set against each single domain", ways, tuple(orderings), note=note)


def combinations():
    modes = ("weighted_mean", "max", "rank_mean", "worst_domain")
    ways = (Way("pooled"), *(Way(mode, calibration={"combine": mode}) for mode in modes),
            Way("pooled, loss_gap", calibration={"adapt": "loss_gap"}))
    orderings = [Ordering("pooled", mode, "mean", HERE) for mode in modes]
    orderings += [Ordering(way, "pooled", "worst", HERE) for way in ("worst_domain", "max", "pooled, loss_gap")]
    note = "Both papers pool and claim nothing about other ways to combine; these orderings are what the ways are made for."
    return Claim(6, "Ways to combine domains", ways, tuple(orderings), note=note)


def all_claims(domains):
    """Claims about several domains fall where there is one."""
    claims = (iterations(), rankings(), criteria(), decisions())
    return claims + ((hybrid(domains), combinations()) if len(domains) > 1 else ())
