"""The command line of launch/reproduce.sh."""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import signal
import sys
import time

from espalier_launch.program import Parser, finish
from espalier_launch.stop import NO_INPUT, UNAVAILABLE, USAGE, Stop

from . import claims as lists
from . import data, page, pictures
from .runs import Bench, Settings, clock, needed

TREE = data.ROOT / "tests/models/tri-domain-qwen2"
NAMES = ("prose", "math", "code")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} (it must be at least 1)")
    return value


def parser():
    p = Parser(prog="launch/reproduce.sh", description="Repeats in small, on a trained model, what both papers compare.", allow_abbrev=False)
    p.add_argument("--out", default="runs/reproduce", metavar="DIR", help="for everything that is written; a later call goes on in it")
    p.add_argument("--model", metavar="DIR",
                   help="a trained model with its tokenizer (default: that of ESPALIER_TEST_DATA, else the small one of this tree)")
    p.add_argument("--texts", nargs="+", metavar="NAME=FILE",
                   help="its domains: JSON Lines with a field text, halved for calibration and evaluation; or NAME=CALIBRATION=HELDOUT")
    p.add_argument("--seeds", type=positive, default=3, metavar="N", help="draws of calibration data (default: 3)")
    p.add_argument("--claims", metavar="N,...", help="only these, e.g. 1,3")
    for flag, what in (("rows", "calibration rows per domain and step"), ("items", "items of the decision task per domain and step"),
                       ("heldout-rows", "rows per domain that are evaluated"), ("heldout-items", "items per domain that are evaluated")):
        p.add_argument(f"--{flag}", type=positive, default=getattr(Settings, flag.replace("-", "_")), metavar="N",
                       help=f"{what} (default: %(default)s)")
    p.add_argument("--target", type=float, default=Settings.target, help="share of decoder parameters to remove (default: %(default)s)")
    p.add_argument("--jobs", type=positive, default=max(1, min(2, len(os.sched_getaffinity(0)))), metavar="N",
                   help="runs at a time, a thread each (default: %(default)s)")
    p.add_argument("--espalier", default=data.ROOT / "build/release/bin/espalier", metavar="FILE", help=argparse.SUPPRESS)
    return p


def model_of(args):
    """(model directory, texts, a note or None)."""
    if args.model:
        if not args.texts:
            raise Stop(USAGE, "--model without --texts", "its domains are not known", "add --texts NAME=FILE...")
        return args.model, args.texts, None
    if args.texts:
        raise Stop(USAGE, "--texts without --model", "they are the domains of a model", "add --model DIR")
    harder = pathlib.Path(os.environ.get("ESPALIER_TEST_DATA", "")) / "models/tri-qwen2"
    if os.environ.get("ESPALIER_TEST_DATA") and (harder / "config.json").exists():
        return harder, [f"{d}={harder}/{d}.valid.jsonl" for d in NAMES], None
    texts = [f"{d}={TREE}/text/{d}.calibration.jsonl={TREE}/text/{d}.heldout.jsonl" for d in NAMES]
    return TREE, texts, ("The model of the tree is so easy that most ways look alike on it: give a harder one with --model and --texts, or by "
                         "ESPALIER_TEST_DATA.")


def chosen(args, domains):
    every = lists.all_claims(domains)
    if not args.claims:
        return every
    try:
        wanted = {int(n) for n in args.claims.split(",")}
    except ValueError:
        wanted = {0}
    if not wanted <= {c.number for c in every}:
        known = ", ".join(str(c.number) for c in every)
        raise Stop(USAGE, f"--claims {args.claims}", f"those of this model are {known}", "name some of them")
    return [c for c in every if c.number in wanted]


def digest(texts):
    """Of all documents of a domain, and on which side they are."""
    return hashlib.sha256(json.dumps([texts.calibration, texts.heldout]).encode()).hexdigest()[:16]


def keep_settings(out, settings, texts):
    """One directory is one set of settings and texts: runs of others do not compare."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "settings.json"
    now = json.loads(json.dumps({**vars(settings), "texts": {t.name: digest(t) for t in texts}}))
    if file.exists():
        before = json.loads(file.read_text())
        other = ", ".join(f"{k} {before.get(k)}" for k in now if before.get(k) != now[k])
        if other:
            raise Stop(USAGE, f"'{out}' has runs of other settings", other, "give another --out, or remove the directory")
    file.write_text(json.dumps(now, indent=1))


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def facts_of(settings, texts, note, bench, seconds):
    sizes = ", ".join(f"{t.name} {len(t.calibration)} and {len(t.heldout)}" for t in texts)
    facts = [
        f"Model `{pathlib.Path(settings.model).name}`, {settings.target:.0%} of its decoder parameters removed, {settings.seeds} calibration seeds.",
        f"Documents for calibration and held out: {sizes}; none is in both.",
        f"{settings.rows} rows of {settings.window} tokens per domain in each of {lists.USUAL} steps, `taylor`, normalisation `gisp`, ranking "
        f"`global`, float32, unless the row says otherwise; {settings.heldout_rows} held-out rows per domain.",
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}; this call took {clock(seconds)} "
        f"(minutes:seconds), all runs on this page, one after another, {clock(bench.elapsed())}.",
    ]
    return facts + ([note] if note else [])


def work(argv):
    args, begin = parser().parse_args(argv), time.monotonic()
    model, arguments, note = model_of(args)
    model = pathlib.Path(model).resolve()
    if not (model / "config.json").exists():
        raise Stop(NO_INPUT, f"'{model}' is no model directory", "it has no config.json", "check --model")
    if not os.access(args.espalier, os.X_OK):
        raise Stop(UNAVAILABLE, f"'{args.espalier}' is no program", "it is not built", "run launch/build.sh")
    texts = [data.read(t) for t in arguments]
    settings = Settings(str(model), tuple(t.name for t in texts), args.seeds, args.target,
                        tuple(x for x in Settings.sparsities if x < args.target), args.rows, args.items, args.heldout_rows, args.heldout_items)
    claims, out = chosen(args, settings.domains), pathlib.Path(args.out).resolve()
    keep_settings(out, settings, texts)
    data.prepare(out / "tokens", settings, texts)
    bench = Bench(pathlib.Path(args.espalier).resolve(), out, settings)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: bench.stop())
    dense = bench.dense()
    try:
        bench.all(needed(claims, settings).values(), args.jobs, lambda text: print(text, flush=True))
    finally:
        sections = page.write(out, claims, bench, dense, facts_of(settings, texts, note, bench, time.monotonic() - begin),
                              pictures.picture)
    for s in sections:
        print(f"\n{s.claim.number}. {s.claim.title}")
        for ordering, by, first, second, verdict, _ in s.verdicts:
            print(f"  {verdict}: {ordering}, by {by}: {first}, {second}")
    print(f"\n{clock(time.monotonic() - begin)} in all. Read {out}/index.html")


if __name__ == "__main__":
    sys.exit(finish("reproduce", lambda: work(sys.argv[1:]), lambda: "the same command goes on"))
