"""What the tables of a report say, computed from what was read. Nothing here draws or reads."""

import math
from dataclasses import dataclass

from .run import MEASURES

# How much the worst domain may lose, as shares of its perplexity, that a size is looked for.
LIMITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PHASES = {
    "open": "opening the model's and the token files",
    "hash inputs": "fingerprints of the inputs",
    "load": "reading the weights",
    "calibrate": "calibration data through the model, forward and backward, and the scores",
    "rank": "choosing what falls",
    "slice": "cutting the weights",
    "save": "writing the commit",
    "refit": "solving matrices anew",
    "evaluate": "evaluations",
}


def percent(share, digits=1):
    return f"{100 * share:.{digits}f}%"


def signed_percent(share):
    text = percent(share)
    return text if text.startswith("-") or text == "0.0%" else f"+{text}"


def short_count(number):
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number / 1e3:.1f} k" if number >= 1e4 else f"{number:,}"


def duration(seconds):
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def sizes_table(run):
    """[(what, before, after, removed, definition)] of counts in the first and in the last line."""
    first, last = run.states[0], run.states[-1]
    rows = []
    for name, words, definition in (
        ("parameters", "parameters", "all numbers of the model; tied embeddings count once"),
        ("decoder_parameters", "decoder parameters", "those of the layers, with their norms"),
        ("heads_kept", "query heads", "over all layers"),
        ("kv_heads_kept", "KV heads", "over all layers; one falls with its last query head"),
        ("channels_kept", "MLP channels", "over all layers"),
    ):
        before, after = first.counts[name], last.counts[name]
        gone = percent(1 - after / before) if before else "–"
        rows.append((words, f"{before:,}", f"{after:,}", gone, definition))
    return rows


def shares_table(run):
    """[(what, before, after, definition)] of the three shares by which a size is named."""
    kinds = run.setting(list, "prune", "kinds") or ["attention", "mlp"]
    units = {
        "kv_group": "KV groups",
        "equal_per_group": "query heads",
        "query_head": "query heads",
    }.get(run.word("prune", "attention_unit"), "heads")
    counted = " and ".join(
        words for kind, words in (("attention", units), ("mlp", "MLP channels")) if kind in kinds
    )
    definitions = {
        "structures": f"removed {counted} / all of them, those of protected layers included",
        "parameters": "parameters removed from the decoder layers / parameters of those layers",
        "total_parameters": "parameters removed / parameters of the whole model with embeddings",
    }
    first, last = run.states[0], run.states[-1]
    return [
        (
            words + (" (prune.measure)" if measure == run.measure else ""),
            percent(first.sparsity[measure]),
            percent(last.sparsity[measure]),
            definitions[measure],
        )
        for measure, (_, words) in MEASURES.items()
    ]


def evaluated(run):
    return [state for state in run.states if state.perplexity or state.accuracy]


def evaluations_table(run):
    """([(evaluation, metric, before, after, change)], first and last state evaluated)."""
    states = evaluated(run)
    if not states:
        return [], None, None
    first, last = states[0], states[-1]
    rows = []
    for name, after in last.perplexity.items():
        before = first.perplexity.get(name)
        if before:
            change = signed_percent(after / before - 1)
            rows.append((name, "perplexity", f"{before:.3f}", f"{after:.3f}", change))
    for (name, metric), (after, error) in last.accuracy.items():
        if (name, metric) in first.accuracy:
            before, error_before = first.accuracy[name, metric]
            change = f"{100 * (after - before):+.1f} points"
            texts = (with_error(before, error_before), with_error(after, error))
            rows.append((name, metric, *texts, change))
    return rows, first, last


def refit_table(run):
    """[(evaluation, metric, dense, pruned, refitted, change from dense to refitted)].

    A geometric mean follows several perplexities."""
    states = evaluated(run)
    if not states:
        return []
    first, last = states[0], states[-1]
    rows, found = [], []
    for name, value in run.refit.perplexity.items():
        before, pruned = first.perplexity.get(name, 0), last.perplexity.get(name, 0)
        if min(before, pruned, value) > 0:
            found.append((before, pruned, value))
            rows.append((name, "perplexity", *perplexity_cells(*found[-1])))
    if len(found) > 1:
        means = (geometric_mean(values) for values in zip(*found))
        rows.append(("geometric mean", "perplexity", *perplexity_cells(*means)))
    for key, (value, error) in run.refit.accuracy.items():
        if key in first.accuracy and key in last.accuracy:
            shares = (first.accuracy[key], last.accuracy[key], (value, error))
            change = f"{100 * (value - shares[0][0]):+.1f} points"
            rows.append((*key, *(with_error(*share) for share in shares), change))
    return rows


def perplexity_cells(before, pruned, refitted):
    change = signed_percent(refitted / before - 1)
    return f"{before:.3f}", f"{pruned:.3f}", f"{refitted:.3f}", change


def geometric_mean(values):
    return math.exp(sum(math.log(value) for value in values) / len(values))


def refit_words(run):
    """What became of the matrices, as a sentence."""
    refit = run.refit
    matrices = refit.matrices
    kept = len(matrices) - refit.refitted
    text = f"{refit.refitted} of {len(matrices)} matrices were solved anew"
    if kept:
        text += f", the guard kept {kept} as they were"
    if matrices:
        widths = [matrix.tokens_per_width for matrix in matrices]
        text += f". On {refit.tokens:,} tokens, {min(widths):.1f} to {max(widths):.1f}"
        text += " for each input that a matrix has left"
    return text + "."


def matrices_table(run):
    """[(layer, matrix, inputs left, tokens for each, ridge, error before, after, what became of it)]"""
    words = {"refitted": "refitted", "dense": "kept", "obs": "kept as updated", "empty": "no input"}
    rows = []
    for matrix in run.refit.all_matrices:
        numbers = ("–",) * 4
        if matrix.outcome != "empty":
            after = "–" if matrix.error_after is None else f"{matrix.error_after:.4f}"
            numbers = (
                f"{matrix.tokens_per_width:.1f}",
                f"{matrix.ridge:g}",
                f"{matrix.error_before:.4f}",
                after,
            )
        told = (str(matrix.layer), matrix.name, f"{matrix.width:,}")
        rows.append((*told, *numbers, words[matrix.outcome]))
    return rows


def with_error(value, error):
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def losses_table(run):
    """[(domain, loss of the first pass, of the last, change)]."""
    passes = [state for state in run.states if state.loss]
    if not passes:
        return []
    first, last = passes[0], passes[-1]
    return [
        (name, f"{first.loss[name]:.4f}", f"{loss:.4f}", f"{loss - first.loss[name]:+.4f}")
        for name, loss in last.loss.items()
        if name in first.loss
    ]


def calibrated(run):
    """[(state, losses)]: the model after an iteration, and what the next pass measured of it."""
    return [(before, after.loss) for before, after in zip(run.states, run.states[1:]) if after.loss]


@dataclass(frozen=True)
class Rise:
    """By which share the perplexity of the domain that lost most has risen."""

    share: float
    domain: str

    @property
    def text(self):
        return f"{signed_percent(self.share)} ({self.domain})"


def worst(rises):
    """The largest of {domain: share}, or None."""
    known = {name: share for name, share in rises.items() if math.isfinite(share)}
    if not known:
        return None
    name = max(known, key=known.get)
    return Rise(known[name], name)


def held_out(run):
    """[(state, Rise)] of all sizes whose perplexity was measured, against the first one."""
    states = [state for state in (*run.states, *run.curve) if state.perplexity]
    states.sort(key=lambda state: (state.sparsity[run.measure], state.iteration is None))
    if not states:
        return []
    first = states[0].perplexity
    found = []
    for state in states:
        both = {n: v / first[n] - 1 for n, v in state.perplexity.items() if first.get(n)}
        if rise := worst(both):
            found.append((state, rise))
    return found


def refitted_rise(run):
    """The Rise of the refitted model against the first state that was evaluated, or None."""
    before = next((state.perplexity for state in run.states if state.perplexity), {})
    after = run.refit.perplexity
    return worst({n: v / before[n] - 1 for n, v in after.items() if before.get(n)})


def on_calibration(run):
    """[(state, Rise)] by the losses of the passes: exp(loss - loss of the first pass) - 1."""
    passes = calibrated(run)
    if not passes:
        return []
    plain = {
        str(domain.get("name"))
        for domain in run.setting(list, "calibration", "domains") or []
        if isinstance(domain, dict) and domain.get("objective") != "margin"
    }
    first = passes[0][1]
    found = []
    for state, losses in passes:
        both = {
            name: math.exp(min(loss - first[name], 700.0)) - 1
            for name, loss in losses.items()
            if name in first and name in plain
        }
        if rise := worst(both):
            found.append((state, rise))
    return found


@dataclass(frozen=True)
class Size:
    state: object
    held_out: Rise | None
    calibration: Rise | None
    reasons: tuple


def worth_taking(run):
    """The nested sizes: for each limit and either measure the largest size that stays within it."""
    sources = {"held out": held_out(run), "calibration": on_calibration(run)}
    reasons, states, rises = {}, {}, {}

    def key(state):
        return state.sparsity["structures"]

    for source, found in sources.items():
        for state, rise in found:
            states.setdefault(key(state), state)
            rises[source, key(state)] = rise
        for limit in LIMITS:
            within = [s for s, rise in found if rise.share <= limit and s.target is not None]
            if within:
                largest = key(max(within, key=key))
                reasons.setdefault(largest, {}).setdefault(source, []).append(percent(limit, 0))
    return [
        Size(
            states[place],
            rises.get(("held out", place)),
            rises.get(("calibration", place)),
            tuple(f"{span(limits)} {source}" for source, limits in reasons[place].items()),
        )
        for place in sorted(reasons)
    ]


def span(texts):
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def phases_table(run):
    """([(phase, time, share, what it is)], total) over all lines, and of the refit."""
    seconds = {}
    for part in (*run.states, *([run.refit] if run.refit else [])):
        for phase, value in part.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    total = sum(seconds.values())
    rows = [
        (phase, duration(value), percent(value / total) if total else "–", PHASES.get(phase, ""))
        for phase, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return rows, total


def about(run):
    """[(word, text)]: what was run, where and by what."""
    program = run.provenance.get("program")
    program = program if isinstance(program, dict) else {}
    layout = run.provenance.get("layout")
    layout = layout if isinstance(layout, dict) else {}
    hosts = run.provenance.get("hosts")
    command = run.provenance.get("command")
    score = run.word("importance", "criterion"), run.word("importance", "normalization")
    rows = [
        ("model", run.word("model", "path")),
        ("criterion", " / ".join(filter(None, score))),
        ("ranking", run.word("prune", "ranking")),
        ("target", target_text(run)),
        ("program", " ".join(str(program[k]) for k in ("version", "git") if program.get(k))),
        ("started", run.provenance.get("started")),
        ("layout", ", ".join(f"{name} {value}" for name, value in layout.items())),
        ("device", run.provenance.get("device")),
        ("hosts", ", ".join(map(str, hosts)) if isinstance(hosts, list) else None),
        ("attempts", run.attempts or None),
        ("peak memory of a rank", memory_text(run)),
        ("skipped micro-batches", sum(state.skipped for state in run.states) or None),
        ("command", " ".join(map(str, command)) if isinstance(command, list) else None),
    ]
    return [(word, str(text)) for word, text in rows if text not in (None, "")]


def target_text(run):
    target = run.setting((int, float), "prune", "target")
    iterations = run.setting(int, "prune", "iterations")
    if target is None or iterations is None:
        return None
    return f"{percent(target)} of {MEASURES[run.measure][1]} in {iterations} iterations"


def memory_text(run):
    peak = max((state.peak_bytes for state in run.states), default=0)
    return f"{peak / (1 << 30):.2f} GiB" if peak else None


def state_text(run):
    """How far an unfinished run is, in words; empty for a finished one."""
    if run.finished:
        return ""
    status = run.status
    words = [f"state {status.get('state') or 'starting'}"]
    if status.get("iterations"):
        words.append(f"iteration {status.get('iteration')} of {status['iterations']}")
    names = {"phase": "phase", "heartbeat": "last sign of life", "reason": "reason"}
    words += [f"{text} {status[name]}" for name, text in names.items() if status.get(name)]
    if status.get("exit_code") is not None:
        words.append(f"exit code {status['exit_code']}")
    return ", ".join(words)


def key_figures(run):
    """[(large text, small text)] for the top of the page."""
    first, last = run.states[0], run.states[-1]
    before, after = first.counts["parameters"], last.counts["parameters"]
    figures = [
        (percent(last.sparsity[run.measure]), f"of {MEASURES[run.measure][1]} removed"),
        (f"{short_count(before)} → {short_count(after)}", "parameters"),
    ]
    rises = [(s, rise) for s, rise in held_out(run) if s.iteration is not None]
    if len(rises) > 1:
        state, rise = rises[-1]
        at = "" if state is last else f" after iteration {state.iteration}"
        figures.append((signed_percent(rise.share), f"perplexity, {rise.domain} (the worst){at}"))
    if run.refit and (rise := refitted_rise(run)):
        figures.append((signed_percent(rise.share), f"perplexity, {rise.domain}, after the refit"))
    _, total = phases_table(run)
    if total:
        number = last.iteration - first.iteration
        words = "of work in 1 iteration" if number == 1 else f"of work in {number} iterations"
        figures.append((duration(total), words))
    return figures
