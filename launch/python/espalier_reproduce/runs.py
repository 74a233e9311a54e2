"""Runs of the program: what configuration a way is, which runs are left to do, and doing them side by side.

OUT/runs/KEY is a run directory, which the program itself continues after a kill; OUT/results/KEY.json is there when run and
evaluations are finished. KEY is a hash of the configuration, so a way that several claims name runs once.
"""

import concurrent.futures
import ctypes
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

from espalier_launch.stop import UNAVAILABLE, Stop

from .claims import USUAL, Way

FORWARD_ONLY = {"wanda_sp": 0.35, "flap": 0.35, "magnitude": 0.0, "random": 0.0}  # of the time of a pass with gradients
STOPPED = 75  # as espalier itself ends after a request to stop
ITEMS = "-items"  # behind a domain's name: its decision task
PARENT_DEATH = 1  # PR_SET_PDEATHSIG


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every run of a page has in common. `rows` and `items` are per domain and step."""

    model: str
    domains: tuple
    seeds: int = 3
    target: float = 0.5
    sparsities: tuple = (0.2, 0.35)  # smaller plans that are evaluated, too
    rows: int = 16
    items: int = 32
    heldout_rows: int = 32
    heldout_items: int = 64
    window: int = 128
    micro_batch_tokens: int = 1024


# ---- configurations ------------------------------------------------------------------------------


def merged(base, changes):
    return {**base, **{k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in changes.items()}}


def domains_of(way, s):
    def tokens(name, kind=""):
        return f"../tokens/{name}.{kind or 'calibration'}.h5"

    if way.data == "texts":
        return [{"name": d, "tokens": tokens(d), "sequences": s.rows} for d in s.domains]
    if way.data == "items":
        return [{"name": d, "tokens": tokens(d, "calibration.items"), "sequences": s.items, "objective": "margin"} for d in s.domains]
    if way.data == "answers":
        return [{"name": d, "tokens": tokens(d, "answers"), "sequences": s.items, "objective": "sft"} for d in s.domains]
    return [{"name": way.data, "tokens": tokens(way.data), "sequences": s.rows * len(s.domains)}]


def configuration(way, seed, s):
    base = {
        "model": {"path": s.model, "dtype": "float32"},
        "device": "cpu",
        "calibration": {"domains": domains_of(way, s), "micro_batch_tokens": s.micro_batch_tokens, "seed": seed},
        "importance": {"criterion": "taylor", "normalization": "gisp"},
        "prune": {"target": s.target, "measure": "parameters", "iterations": USUAL},
        "checkpoint": {"keep_last": 1, "keep_every": 0},
    }
    return merged(base, {"calibration": way.calibration, "importance": way.importance, "prune": way.prune})


@dataclasses.dataclass(frozen=True)
class Run:
    key: str
    config: str  # JSON, which is YAML
    decides: bool
    cost: float

    @classmethod
    def of(cls, way, seed, s, decides):
        config = configuration(way, seed if way.seeded else 0, s)
        text = json.dumps(config, indent=1)
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], text, decides, cost(config, s, decides))


def cost(config, s, decides):
    """Rows through the model, forward and backward ones counting three times as much as evaluated ones."""
    factor = FORWARD_ONLY.get(config["importance"]["criterion"], 1.0)
    passes = config["prune"]["iterations"] * s.rows * len(s.domains) * 3 * factor
    rows = (len(s.sparsities) + 1) * s.heldout_rows + (2 * s.heldout_items if decides else 0)  # an item's options: short rows
    return passes + rows * len(s.domains)


def needed(claims, s):
    """{key: Run} of all claims, one claim after the other, the long runs of each first."""
    runs = {}
    for claim in claims:
        of_claim = [Run.of(way, seed, s, claim.decides) for way in claim.ways for seed in range(s.seeds)]
        for run in sorted(of_claim, key=lambda r: -r.cost):
            if run.key not in runs or claim.decides:
                runs[run.key] = run
    return runs


# ---- results -------------------------------------------------------------------------------------


def read_evaluation(facts):
    """Perplexities and accuracies of one point of a curve, or of an eval.json."""
    found = {"perplexity": {name: p["perplexity"] for name, p in facts.get("perplexity", {}).items()}}
    choices = facts.get("multiple_choice") or {}
    if choices:
        found["accuracy"] = {name.removesuffix(ITEMS): c["acc_norm"] for name, c in choices.items()}
    return found


def margins(items_file, folder):
    """{domain: mean over items of the right option's log likelihood per token minus that of the wrong ones'}."""
    import h5py
    import numpy

    rows, found = {}, {}
    for line in pathlib.Path(items_file).read_text().splitlines():
        one = json.loads(line)
        rows.setdefault(one["task"].removesuffix(ITEMS), []).extend(one["log_likelihoods"])
    for name, likelihoods in rows.items():
        with h5py.File(folder / f"{name}.heldout.items.h5") as file:
            counted, item, right = file["loss_mask"][:].sum(1), file["item"][:], file["correct"][:] == 1
        per_token = numpy.array(likelihoods) / counted
        found[name] = float(numpy.mean([per_token[(item == i) & right].mean() - per_token[(item == i) & ~right].mean()
                                        for i in dict.fromkeys(item.tolist())]))
    return found


# ---- doing it ------------------------------------------------------------------------------------


LIBC = ctypes.CDLL(None)


def die_with_parent():
    """A killed script leaves nothing behind that would hold a run directory."""
    LIBC.prctl(PARENT_DEATH, signal.SIGTERM)


class Bench:
    """The program and the directory it works in."""

    def __init__(self, program, out, settings):
        self.program, self.out, self.settings = str(program), pathlib.Path(out), settings
        self.stopped = threading.Event()
        self.living, self.lock = set(), threading.Lock()
        for name in ("runs", "results", "evaluations", "configs", "logs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

    def result_file(self, key):
        return self.out / "results" / f"{key}.json"

    def elapsed(self):
        """Seconds on the clock that the finished runs took with their evaluations, what was interrupted not counted."""
        return sum(json.loads(f.read_text()).get("elapsed", 0.0) for f in (self.out / "results").glob("*.json"))

    def result(self, run):
        """Of a finished run, with all that the claims ask of it; else None."""
        try:
            found = json.loads(self.result_file(run.key).read_text())
        except (OSError, ValueError):
            return None
        return found if "margin" in found or not run.decides else None

    def call(self, log, *arguments):
        if self.stopped.is_set():
            raise Stop(STOPPED, "stopped", "a signal came", "the same command goes on")
        with open(log, "a") as file:
            with self.lock:
                try:
                    process = subprocess.Popen([self.program, "--quiet", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=file,
                                               stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=die_with_parent)
                except OSError as error:
                    raise Stop(UNAVAILABLE, f"'{self.program}' cannot be started", error.strerror, "build it, then call this again") from error
                self.living.add(process)
            code = process.wait()
            with self.lock:
                self.living.discard(process)
        if self.stopped.is_set():
            raise Stop(STOPPED, "stopped", "a signal came", "the same command goes on")
        if code != 0:
            end = " / ".join(line.strip() for line in pathlib.Path(log).read_text().splitlines()[-4:])
            raise Stop(code if code > 0 else UNAVAILABLE, f"espalier {arguments[0]} ended with {code}", end, f"see {log}, then call it again")

    def stop(self):
        self.stopped.set()
        with self.lock:
            for process in self.living:
                process.terminate()

    def evaluation_flags(self, decides):
        """Overrides with paths that hold wherever the configuration lies."""
        tokens = (self.out / "tokens").resolve()
        rows = [{"name": d, "tokens": str(tokens / f"{d}.heldout.h5")} for d in self.settings.domains]
        items = [{"name": d + ITEMS, "tokens": str(tokens / f"{d}.heldout.items.h5")} for d in self.settings.domains] if decides else []
        return ["--set", f"evaluation.perplexity={json.dumps(rows)}", "--set", f"evaluation.multiple_choice={json.dumps(items)}"]

    def dense(self):
        """Evaluations of the model as it is, of the page's domains and items."""
        file = self.result_file("dense")
        if not file.exists():
            config = self.out / "configs" / "dense.yaml"
            config.write_text(json.dumps(configuration(Way("dense"), 0, self.settings), indent=1))
            self.save("dense", self.evaluate("dense", config, True))
        return json.loads(file.read_text())

    def evaluate(self, key, source, decides):
        """Of a configuration's model, or of what a run directory has come to."""
        out, chosen = (self.out / "evaluations" / f"{key}.{ending}" for ending in ("json", "items.jsonl"))
        for leftover in (out, chosen):
            leftover.unlink(missing_ok=True)
        flags = ["--items", chosen] if decides else []
        self.call(self.out / "logs" / f"{key}.log", "eval", source, *self.evaluation_flags(decides), "--out", out, *flags)
        found = read_evaluation(json.loads(out.read_text()))
        if decides:
            found["margin"] = margins(chosen, self.out / "tokens")
        return found

    def curve(self, key):
        """Perplexities of the smaller plans of a run."""
        out = self.out / "evaluations" / f"{key}.curve.json"
        out.unlink(missing_ok=True)
        out.with_suffix(".csv").unlink(missing_ok=True)
        sizes = ",".join(f"{x:g}" for x in self.settings.sparsities)
        self.call(self.out / "logs" / f"{key}.log", "eval", self.out / "runs" / key, *self.evaluation_flags(False), "--sparsity", sizes,
                  "--out", out)
        return [{"removed": p["sparsity_parameters"], **read_evaluation(p)} for p in json.loads(out.read_text())["points"]]

    def save(self, key, found):
        fresh = self.out / "results" / f"{key}.new"
        fresh.write_text(json.dumps(found, indent=1))
        fresh.replace(self.result_file(key))

    def do(self, run):
        """One run with its evaluations: whatever of it was done before is not done again."""
        begin, config, folder = time.monotonic(), self.out / "configs" / f"{run.key}.yaml", self.out / "runs" / run.key
        config.write_text(run.config)
        self.call(self.out / "logs" / f"{run.key}.log", "run", config, "--run-dir", folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = lines[-1]
        points = self.curve(run.key) if self.settings.sparsities else []
        end = self.evaluate(run.key, folder, run.decides)
        self.save(run.key, {
            "removed": last["sparsity_parameters"], "parameters": last["parameters"], "decoder_parameters": last["decoder_parameters"],
            "heads": last["heads_kept"], "channels": last["channels_kept"],
            "seconds": sum(line.get("seconds_iteration", 0.0) for line in lines), "elapsed": time.monotonic() - begin, **end,
            "points": [*points, {"removed": last["sparsity_parameters"], **end}]})

    def all(self, runs, jobs, say):
        """Does what is left of the runs in their order, `jobs` at a time."""
        left = [r for r in runs if self.result(r) is None]
        total, done, begin = sum(r.cost for r in left), 0.0, time.monotonic()
        say(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before; {jobs} at a time")
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                going = {pool.submit(self.do, run): run for run in left}
                for number, one in enumerate(concurrent.futures.as_completed(going), 1):
                    one.result()
                    done += going[one].cost
                    passed = time.monotonic() - begin
                    say(f"{number}/{len(left)} runs, {clock(passed)}, about {clock(passed * (total - done) / done)} left")
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
