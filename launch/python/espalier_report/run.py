"""What a run directory holds (docs/file-formats.md), checked and as arrays."""

import os
import re
from dataclasses import dataclass, field

import numpy as np
import yaml
from espalier_launch.stop import BAD_CONTENT, NO_INPUT, Stop, stop_of

from . import files
from .files import Arrays, Facts, damaged

KINDS = ("attention", "mlp")
OUTPUT_MATRICES = {"attention": "o_proj", "mlp": "down_proj"}
OUTCOMES = ("refitted", "dense", "obs", "empty")
MEASURES = {  # value of prune.measure: (member of a line of metrics.jsonl, words)
    "structures": ("sparsity_structures", "structures"),
    "parameters": ("sparsity_parameters", "decoder parameters"),
    "total_parameters": ("sparsity_total_parameters", "all parameters"),
}


@dataclass(frozen=True)
class State:
    """The model after an iteration: a line of metrics.jsonl, or a point of a curve."""

    iteration: int | None
    target: float | None  # what `espalier export --sparsity` takes for this size
    sparsity: dict  # {measure: share removed}
    counts: dict  # {name: count left}
    perplexity: dict  # {name: value}
    accuracy: dict  # {(name, metric): (value, standard error or None)}
    items: dict  # {name: number of items}
    loss: dict  # {domain: mean loss before this iteration's removal}
    seconds: dict  # {phase: seconds}
    plan_digest: str = ""
    seconds_iteration: float | None = None
    margin: float | None = None
    rounding: dict = field(default_factory=dict)  # {importance, free_importance} under prune.width_multiple
    tokens: int = 0
    peak_bytes: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Plan:
    """Which unit fell in which iteration: {kind: int array [layers, units], -1 = kept}."""

    iteration: int
    unit: str
    removed_at: dict


@dataclass(frozen=True)
class Scores:
    """What a commit was ranked by: {kind: (layers, units, scores)}, of units that could fall."""

    iteration: int
    criterion: str
    normalization: str
    lists: dict
    removed_at: dict


@dataclass(frozen=True)
class Matrix:
    """What became of one matrix in the refit."""

    layer: int
    name: str
    outcome: str
    width: int  # inputs that are left
    tokens_per_width: float
    ridge: float
    error_before: float  # share of the target's variance that is left unexplained
    error_after: float | None  # held out; None where no ridge had a solution


@dataclass(frozen=True)
class Refit:
    """The refit of the newest plan."""

    tokens: int
    all_matrices: list
    perplexity: dict  # {name: value} of the refitted model
    accuracy: dict  # {(name, metric): (value, standard error or None)}
    seconds: dict  # {phase: seconds}

    @property
    def matrices(self):
        """Those that have inputs."""
        return [matrix for matrix in self.all_matrices if matrix.outcome != "empty"]

    @property
    def refitted(self):
        return sum(matrix.outcome == "refitted" for matrix in self.all_matrices)


@dataclass
class Run:
    path: str
    status: dict = field(default_factory=dict)
    states: list = field(default_factory=list)
    curve: list = field(default_factory=list)
    plan: Plan | None = None
    scores: list = field(default_factory=list)  # oldest and newest commit
    overlap: dict | None = None
    refit: Refit | None = None
    config_text: str = ""
    config: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    attempts: int = 0

    @property
    def finished(self):
        return self.status.get("state") == "finished"

    @property
    def measure(self):
        found = self.word("prune", "measure")
        return found if found in MEASURES else "structures"

    def setting(self, kind, *names):
        """A value of the resolved configuration; None where there is none of that kind."""
        value = self.config
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, kind) else None

    def word(self, *names):
        return self.setting(str, *names) or ""


def read_run(path, curves=()):
    """All of the run directory that a report shows. Throws a Stop that names what is wrong."""
    if not os.path.isdir(path) or not os.path.exists(os.path.join(path, "config.resolved.yaml")):
        raise Stop(
            NO_INPUT,
            f"'{path}' is no run directory",
            "it has no config.resolved.yaml" if os.path.isdir(path) else "there is no such folder",
            "name the directory that --run-dir of espalier run named",
        )

    def at(*names):
        return os.path.join(path, *names)

    run = Run(path)
    run.config_text = files.text_of(at("config.resolved.yaml")) or ""
    run.config = config_of(run.config_text, at("config.resolved.yaml"))
    run.status = status_of(files.object_of(at("status.json")) or {}, at("status.json"))
    run.provenance = files.object_of(at("provenance.json")) or {}
    run.states = states_of(files.lines_of(at("metrics.jsonl")), at("metrics.jsonl"))
    run.plan = plan_of(at("plan.h5"))
    run.scores = scores_of(at("ckpt"))
    run.overlap = overlap_of(files.object_of(at("overlap.json")), at("overlap.json"))
    run.refit = refit_of(files.object_of(at("refit.json")), run.states, at("refit.json"))
    run.attempts = sum(name.startswith("attempt-") for name in names_in(at("logs")))
    for curve in curves:
        run.curve += curve_of(curve, run)
    return run


def names_in(folder):
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise stop_of(error, folder)


def config_of(text, path):
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise damaged(path, " ".join(str(error).split()))
    if not isinstance(value, dict):
        raise damaged(path, "it holds no keys")
    return value


def status_of(values, path):
    facts = Facts(values, path)
    texts = ("state", "phase", "heartbeat", "reason")
    counts = ("iteration", "iterations", "exit_code")
    return {
        **{name: facts.text(name) for name in texts},
        **{name: facts.count(name, None) for name in counts},
    }


def states_of(rows, path):
    """The lines of metrics.jsonl, which count up."""
    states = [state_of(Facts(row, path, f"line {n}: ")) for n, row in enumerate(rows, 1)]
    for before, after in zip(states, states[1:]):
        if after.iteration <= before.iteration:
            raise damaged(path, f"iteration {after.iteration} follows {before.iteration}")
    return states


def state_of(row):
    named = ("parameters", "decoder_parameters", "heads_kept", "kv_heads_kept", "channels_kept")
    return State(
        iteration=row.count("iteration", Facts),
        target=row.number("target", None),
        sparsity=sparsity_of(row),
        counts={name: row.count(name, Facts) for name in named},
        perplexity=row.numbers("perplexity"),
        **shares_of(row),
        loss=row.numbers("loss"),
        seconds=row.numbers("seconds"),
        plan_digest=row.text("plan_digest"),
        seconds_iteration=row.number("seconds_iteration", None),
        margin=row.number("margin_at_cut", None),
        rounding=row.numbers("rounding"),
        tokens=row.count("tokens", 0),
        peak_bytes=row.count("peak_bytes", 0),
        skipped=len(row.list("skipped")),
    )


def sparsity_of(row):
    return {measure: row.share(member) for measure, (member, _) in MEASURES.items()}


def shares_of(row):
    """Shares of items that were right, of both kinds of tasks."""
    accuracy, items = {}, {}
    for kind, metrics in (
        ("multiple_choice", ("acc", "acc_norm")),
        ("exact_match", ("strict", "flexible")),
    ):
        for name in row.inside(kind).values:
            task = row.inside(kind).inside(name)
            items[name] = task.count("items", 0)
            for metric in metrics:
                value = task.number(metric, None)
                if value is not None:
                    accuracy[name, metric] = (value, task.number(f"{metric}_stderr", None))
    return {"accuracy": accuracy, "items": items}


def plan_of(path):
    content = files.bytes_of(path)
    return None if content is None else plan_in(Arrays(content, path))


def plan_in(arrays):
    if arrays.text("format") != "espalier-plan" or arrays.integer("version") != 1:
        raise damaged(arrays.path, "it is no espalier-plan of version 1")
    removed_at = {kind: arrays.array(f"{kind}/removed_at", "i", 2) for kind in KINDS}
    layers = {matrix.shape[0] for matrix in removed_at.values()}
    iteration = arrays.integer("iteration")
    if len(layers) != 1 or 0 in layers:
        raise damaged(arrays.path, f"its matrices have {sorted(layers)} layers")
    for kind, matrix in removed_at.items():
        if matrix.size and not (matrix.min() >= -1 and matrix.max() <= iteration):
            raise damaged(arrays.path, f"{kind}/removed_at is not between -1 and {iteration}")
    if arrays.text("digest") != digest_of(arrays, removed_at):
        raise damaged(arrays.path, "its content does not match its digest")
    return Plan(iteration, arrays.text("attention_unit"), removed_at)


def digest_of(arrays, removed_at):
    """What docs/file-formats.md says of a plan's digest."""
    parts = []
    for kind in KINDS:
        order = arrays.array(f"{kind}/order", "i", 2)
        for matrix, type in ((removed_at[kind], "<i4"), (order, "<i8")):
            parts += [np.array(matrix.shape, "<i8").tobytes(), matrix.astype(type).tobytes()]
    return files.sha256(b"".join(parts))


def scores_of(folder):
    """The scores of the oldest and of the newest commit that are there."""
    names = [name for name in names_in(folder) if re.fullmatch(r"iter-\d{6,}", name)]
    names.sort(key=lambda name: int(name[5:]))
    ends = dict.fromkeys((*names[:1], *names[-1:]))
    found = [commit_of(os.path.join(folder, name)) for name in ends]
    # A run under way may have removed one meanwhile.
    return [scores for scores in found if scores is not None and scores.lists]


def commit_of(folder):
    """The scores of a commit; its file must be the one that its manifest names."""
    manifest = files.object_of(os.path.join(folder, "MANIFEST.json"))
    path = os.path.join(folder, "state.h5")
    content = files.bytes_of(path)
    if manifest is None or content is None:
        if os.path.isdir(folder):
            raise damaged(folder, "MANIFEST.json or state.h5 is missing")
        return None
    named = Facts(manifest, folder).inside("files").inside("state.h5")
    if named.text("sha256") != files.sha256(content):
        raise damaged(path, "the content does not match the hash in MANIFEST.json")
    arrays = Arrays(content, path)
    plan = plan_in(arrays)
    lists = {kind: scores_in(arrays, kind, plan) for kind in KINDS}
    return Scores(
        plan.iteration,
        arrays.text("criterion"),
        arrays.text("normalization"),
        {kind: one for kind, one in lists.items() if len(one[2])},
        plan.removed_at,
    )


def scores_in(arrays, kind, plan):
    layer, unit = (arrays.array(f"{kind}/{name}", "i", 1) for name in ("layer", "unit"))
    score = arrays.array(f"{kind}/score", "f", 1)
    shape = plan.removed_at[kind].shape
    if not len(layer) == len(unit) == len(score):
        lengths = f"{len(score)}, {len(layer)} and {len(unit)}"
        raise damaged(arrays.path, f"{kind}: score, layer and unit have {lengths} entries")
    if len(score) and not (
        min(layer.min(), unit.min()) >= 0 and layer.max() < shape[0] and unit.max() < shape[1]
    ):
        raise damaged(arrays.path, f"{kind}: a score is of a unit that the plan does not have")
    if np.isnan(score).any() or np.isneginf(score).any():
        raise damaged(arrays.path, f"{kind}: a score is no number")
    could_fall = np.isfinite(score)  # obs gives the last unit of a layer an infinite score
    return layer[could_fall], unit[could_fall], score[could_fall]


def overlap_of(values, path):
    """{"domains": names, "iterations": [(iteration, {kind: (matrix, [matrix of a layer])})]}."""
    if values is None:
        return None
    facts = Facts(values, path)
    domains = [str(name) for name in facts.list("domains")]
    iterations = []
    for number, one in enumerate(facts.list("iterations"), 1):
        if not isinstance(one, dict):
            raise damaged(path, f"entry {number} of iterations is no object")
        row = Facts(one, path, f"entry {number} of iterations: ")
        kinds = {}
        for kind in KINDS:
            inside, size = row.inside(kind), len(domains)
            layers = [one for one in inside.list("layers") if isinstance(one, dict)]
            lists = [inside.list("all"), *(layer.get("jaccard") for layer in layers)]
            matrices = [jaccard(one, size, f"{row.where}{kind}", path) for one in lists]
            kinds[kind] = (matrices[0], np.array(matrices[1:]).reshape(-1, size, size))
        iterations.append((row.count("iteration", Facts), kinds))
    return {"domains": domains, "iterations": iterations} if domains and iterations else None


def jaccard(matrix, size, where, path):
    """Domain x domain; not a number where neither domain removes a unit."""
    try:
        values = np.array(matrix, dtype=float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    known = values[~np.isnan(values)]
    if values.shape != (size, size) or not ((known >= 0) & (known <= 1)).all():
        raise damaged(path, f"{where}: no matrix of {size} x {size} indices from 0 to 1")
    return values


def refit_of(values, states, path):
    """The refit of the last state; None where there is none, or it is of another plan."""
    if values is None or not states:
        return None
    facts = Facts(values, path)
    if facts.text("plan_digest") != states[-1].plan_digest:
        return None
    halves = [matrices_of(half, number, path) for number, half in enumerate(facts.list("halves"), 1)]
    return Refit(
        tokens=facts.count("tokens", Facts),
        all_matrices=[matrix for half in halves for matrix in half],
        perplexity=facts.numbers("perplexity"),
        accuracy=shares_of(facts)["accuracy"],
        seconds=facts.numbers("seconds"),
    )


def matrices_of(values, number, path):
    """Of one half, in the order in which they were solved."""
    where = f"entry {number} of halves"
    if not isinstance(values, dict):
        raise damaged(path, f"{where} is no object")
    row = Facts(values, path, f"{where}: ")
    kind, layer = row.text("kind"), row.count("layer", Facts)
    projections = values.get("projections", {})
    if kind not in KINDS or not isinstance(projections, dict):
        raise damaged(path, f"{where}: kind {kind}, projections {projections}")
    return [
        *(matrix_of(facts, layer, name, f"{where}, {name}", path) for name, facts in projections.items()),
        matrix_of(values, layer, OUTPUT_MATRICES[kind], where, path),
    ]


def matrix_of(values, layer, name, where, path):
    if not isinstance(values, dict):
        raise damaged(path, f"{where} is no object")
    row = Facts(values, path, f"{where}: ")
    outcome = row.text("outcome")
    if outcome not in OUTCOMES:
        raise damaged(path, f"{where}: outcome {outcome}")
    after = values.get("error_after")
    return Matrix(
        layer=layer,
        name=name,
        outcome=outcome,
        width=row.count("width", Facts),
        tokens_per_width=row.number("tokens_per_width", Facts),
        ridge=row.number("ridge", Facts),
        error_before=row.number("error_before", Facts),
        error_after=None if after is None else row.number("error_after", Facts),
    )


def curve_of(path, run):
    """The points of a curve of this run."""
    values = files.object_of(path)
    if values is None:
        raise Stop(NO_INPUT, f"cannot read '{path}'", "there is no such file", "check the path")
    points = []
    for number, point in enumerate(Facts(values, path).list("points"), 1):
        if not isinstance(point, dict):
            raise damaged(path, f"point {number} is no object")
        row = Facts(point, path, f"point {number}: ")
        points.append(
            State(
                iteration=None,
                target=row.number("sparsity", Facts),
                sparsity=sparsity_of(row),
                counts={"parameters": row.count("parameters", Facts)},
                perplexity={
                    name: row.inside("perplexity").inside(name).number("perplexity", Facts)
                    for name in row.inside("perplexity").values
                },
                **shares_of(row),
                loss={},
                seconds={},
                plan_digest=row.text("plan_digest"),
            )
        )
    if not points:
        raise damaged(path, "it has no points")
    require_same_run(points, run, path)
    return points


def require_same_run(points, run, path):
    """Plans of the same size are the same plan."""
    known = {state.sparsity["structures"]: state.plan_digest for state in run.states}
    for point in points:
        digest = known.get(point.sparsity["structures"], point.plan_digest)
        if digest and point.plan_digest and digest != point.plan_digest:
            size = f"{100 * point.sparsity['structures']:.1f}%"
            raise Stop(
                BAD_CONTENT,
                f"'{path}' is a curve of another run",
                f"its plan without {size} of the structures is not the one of this run",
                f"make it with: espalier eval {run.path} --sparsity ... --out FILE",
            )
