"""launch/reproduce.sh: its rule for verdicts, its tables, its data, what it asks of the program, and going on after a kill (with a
program that only pretends)."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "launch/python"))

from espalier_reproduce import claims, data, page, pictures, runs, verdicts  # noqa: E402
from espalier_reproduce.verdicts import HELD, NOT, UNDECIDED, WITHIN, Spread, verdict  # noqa: E402

DOMAINS = ("prose", "math", "code")
MODEL = ROOT / "tests/models/tri-domain-qwen2"
PATIENCE = 600  # seconds: what takes five on an idle machine may take minutes on a busy one


def settings(**changes):
    return runs.Settings(**{"model": str(MODEL), "domains": DOMAINS, **changes})


class Verdicts(unittest.TestCase):
    def test_rule(self):
        for better, worse, higher, expected in (
            ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5), False, HELD),
            ((1.0, 1.1, 1.2), (1.2, 1.4, 1.5), False, WITHIN),  # they touch
            ((1.0, 1.1, 1.6), (1.3, 1.4, 1.5), False, WITHIN),
            ((1.3, 1.4, 1.5), (1.0, 1.1, 1.2), False, NOT),
            ((0.7, 0.8, 0.9), (0.4, 0.5, 0.6), True, HELD),
            ((0.4, 0.5, 0.6), (0.7, 0.8, 0.9), True, NOT),
            ((0.4, 0.7, 0.6), (0.7, 0.8, 0.9), True, WITHIN),
            ((1.0, 1.0), (1.0, 1.0), False, WITHIN),
            ((1.0, 1.1), (2.0,), False, HELD),  # a way that no seed changes
        ):
            with self.subTest(better=better, worse=worse):
                self.assertEqual(verdict(Spread(better), Spread(worse), higher, 3), expected)

    def test_one_seed_decides_nothing(self):
        self.assertEqual(verdict(Spread((1.0,)), Spread((2.0,)), False, 1), UNDECIDED)

    def test_metrics(self):
        dense = {"perplexity": {"a": 2.0, "b": 8.0}}
        result = {"perplexity": {"a": 4.0, "b": 9.0}, "accuracy": {"a": 0.5, "b": 0.7}, "margin": {"a": 1.0, "b": 3.0}}
        for name, expected in (("mean", 6.0), ("worst", 2.0), ("a", 4.0), ("accuracy", 0.6), ("margin", 2.0)):
            self.assertAlmostEqual(verdicts.metric_of(result, name, dense), expected, places=12)

    def test_orderings_name_ways_and_metrics(self):
        for claim in claims.all_claims(DOMAINS):
            names = [way.name for way in claim.ways]
            self.assertEqual(len(set(names)), len(names))
            for ordering in claim.orderings:
                self.assertIn(ordering.better, names)
                self.assertIn(ordering.worse, names)
                self.assertIn(ordering.metric, verdicts.metrics_of(claim, DOMAINS))

    def test_one_domain_has_no_claims_about_several(self):
        self.assertEqual([c.number for c in claims.all_claims(("prose",))], [1, 2, 3, 4])
        self.assertEqual([c.number for c in claims.all_claims(DOMAINS)], [1, 2, 3, 4, 5, 6])


class Configurations(unittest.TestCase):
    def test_every_override_is_a_key_of_the_reference(self):
        reference = yaml.safe_load((ROOT / "configs/reference.yaml").read_text())
        domain = set(reference["calibration"]["domains"][0])
        for claim in claims.all_claims(DOMAINS):
            for way in claim.ways:
                config = runs.configuration(way, 1, settings())
                for section, values in config.items():
                    self.assertIn(section, reference)
                    if isinstance(values, dict):
                        self.assertLessEqual(set(values), set(reference[section]), way.name)
                for one in config["calibration"]["domains"]:
                    self.assertLessEqual(set(one), domain)
                self.assertEqual((config["prune"]["target"], config["prune"]["measure"]), (0.5, "parameters"), way.name)

    def test_ways_are_shared_and_seeds_are_not(self):
        s = settings()
        key = [runs.Run.of(claims.Way(name), 1, s, False).key for name in ("global", "taylor")]
        self.assertEqual(key[0], key[1])
        self.assertEqual(runs.configuration(claims.steps(8), 1, s), runs.configuration(claims.Way("x"), 1, s))
        self.assertNotEqual(key[0], runs.Run.of(claims.Way("global"), 2, s, False).key)
        fixed = claims.Way("magnitude", {"criterion": "magnitude"}, seeded=False)
        self.assertEqual(runs.Run.of(fixed, 1, s, False), runs.Run.of(fixed, 2, s, False))

    def test_who_evaluates_decisions(self):
        """A run that two claims name is evaluated for both."""
        s = settings(seeds=2)
        every = claims.all_claims(DOMAINS)
        shared = [runs.Run.of(claims.Way("taylor"), seed, s, False).key for seed in range(2)]
        for order in (every, every[::-1]):
            needed = runs.needed(order, s)
            self.assertTrue(all(needed[key].decides for key in shared))
            self.assertEqual(sum(run.decides for run in needed.values()), 6)  # three ways, two seeds

    def test_single_domains_calibrate_on_as_many_rows(self):
        hybrid = claims.hybrid(DOMAINS)
        rows = [sum(d["sequences"] for d in runs.configuration(way, 0, settings())["calibration"]["domains"]) for way in hybrid.ways]
        self.assertEqual(len(set(rows)), 1)


class Data(unittest.TestCase):
    def test_halves_share_no_first_line(self):
        texts = [f"# task {i // 3}\nin language {i}" for i in range(300)]
        calibration, heldout = data.halves(texts)
        self.assertEqual(sorted(calibration + heldout), sorted(texts))
        self.assertGreater(min(len(calibration), len(heldout)), 100)
        self.assertFalse({t.partition("\n")[0] for t in calibration} & {t.partition("\n")[0] for t in heldout})

    def test_items(self):
        generator = __import__("random").Random(3)
        texts = [f"title {i}\n" + " ".join(generator.choice("alpha beta gamma delta  epsilon\n zeta".split(" ")) + str(i) for _ in range(60))
                 for i in range(8)]
        found = data.items(texts, 12, data.LENGTHS[0])
        self.assertEqual(len(found), 12)
        self.assertEqual(found, data.items(texts, 12, data.LENGTHS[0]))
        for item in found:
            self.assertEqual(len(set(item["choices"])), data.OPTIONS)
            own = [t for t in texts if item["context"] + " " + item["choices"][item["answer"]] in t]
            self.assertEqual(len(own), 1)
            for k, choice in enumerate(item["choices"]):
                self.assertEqual(choice in own[0], k == item["answer"])
        self.assertGreater(len({item["answer"] for item in found}), 1)

    def test_documents_of_both_files_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / name for name in ("a.jsonl", "b.jsonl")]
            for file, texts in zip(files, (("x", "y"), ("y", "z"))):
                data.write_lines(file, [{"text": t} for t in texts])
            with self.assertRaisesRegex(Exception, "1 documents are in both"):
                data.read(f"a={files[0]}={files[1]}")


class FixedBench:
    """Results by configuration, without a program."""

    def __init__(self, s, perplexity):
        self.settings, self.perplexity = s, perplexity

    def result(self, run):
        config = json.loads(run.config)
        values = self.perplexity.get((config["prune"].get("ranking", "global"), config["calibration"]["seed"]))
        if values is None:
            return None
        one = {"perplexity": dict(zip(DOMAINS, values)), "removed": 0.4999}
        return {**one, "parameters": 10, "decoder_parameters": 8, "heads": 3, "channels": 20 + config["calibration"]["seed"], "seconds": 1.0,
                "points": [one]}


class Pages(unittest.TestCase):
    dense = {"perplexity": {"prose": 10.0, "math": 5.0, "code": 2.0}, "accuracy": {}, "margin": {}}
    numbers = {("global", 0): (20.0, 10.0, 5.0), ("global", 1): (40.0, 10.0, 10.0), ("global_by_kind", 0): (20.0, 10.0, 5.0),
               ("global_by_kind", 1): (20.0, 10.0, 5.0), ("local", 0): (80.0, 20.0, 10.0), ("local", 1): (80.0, 40.0, 20.0)}

    def write(self, folder, numbers):
        bench = FixedBench(settings(seeds=2, sparsities=()), numbers)
        return page.write(pathlib.Path(folder), [claims.rankings()], bench, self.dense, ["a `fact` & more"], pictures.picture)

    def test_table_of_fixed_numbers(self):
        with tempfile.TemporaryDirectory() as folder:
            self.write(folder, self.numbers)
            text = (pathlib.Path(folder) / "results.md").read_text()
            self.assertIn("| dense | 10.00 | 5.000 | 2.000 | 4.642 | 1.000 | 0 |  |  |  |", text)
            self.assertIn("| global | 30.00 [20.00, 40.00] | 10.00 [10.00, 10.00] | 7.500 [5.000, 10.00] | 12.94 [10.00, 15.87] | "
                          "3.750 [2.500, 5.000] | 50.0 | 3 | 20 to 21 | 1.0 |", text)
            self.assertIn("| global better than local | geometric mean | 12.94 [10.00, 15.87] | 32.60 [25.20, 40.00] | held | arXiv 2510.18030 |",
                          text)
            self.assertIn("Of 1 orderings that the papers state, 1 held", text)
            stored = json.loads((pathlib.Path(folder) / "results.json").read_text())
            self.assertEqual(stored["papers"], {"held": 1, "did_not_hold": 0, "asked": 1})
            self.assertTrue(stored["complete"])
            csv = (pathlib.Path(folder) / "claim-2.csv").read_text().splitlines()
            self.assertEqual(csv[0], "way,seed,removed,prose,math,code,mean,worst")
            self.assertEqual(len(csv), 1 + 6)
            html = (pathlib.Path(folder) / "index.html").read_text()
            self.assertIn("<code>fact</code> &amp; more", html)
            self.assertIn("<td class=held>held</td>", html)
            self.assertIn("<svg", html)
            root = xml.etree.ElementTree.parse(pathlib.Path(folder) / "claim-2.svg").getroot()
            self.assertTrue(root.tag.endswith("svg"))

    def test_missing_runs_are_said(self):
        with tempfile.TemporaryDirectory() as folder:
            sections = self.write(folder, {k: v for k, v in self.numbers.items() if k != ("local", 1)})
            self.assertFalse(sections[0].complete)
            self.assertIn("Not complete", (pathlib.Path(folder) / "results.md").read_text())
            self.assertFalse(json.loads((pathlib.Path(folder) / "results.json").read_text())["complete"])


FAKE = r'''#!@PYTHON@
"""Pretends to be espalier: writes down its calls, waits or fails where it is told to, and makes up numbers."""
import json, os, pathlib, sys, time
a = sys.argv[2:]
flag = lambda name: a[a.index(name) + 1] if name in a else None
base = pathlib.Path(os.environ["FAKE"])
with open(base / "calls", "a") as file:
    print(a[0], pathlib.Path(flag("--run-dir") or a[1]).name, file=file)
number = len((base / "calls").read_text().splitlines())
if number == int(os.environ.get("FAKE_FAILS_AT", -1)):
    sys.exit("nothing works")
if number == int(os.environ.get("FAKE_WAITS_AT", -1)):
    (base / "waits").write_text(str(os.getpid()))
    time.sleep(600)
if a[0] == "run":
    folder = pathlib.Path(flag("--run-dir"))
    folder.mkdir(exist_ok=True)
    iterations = json.loads(pathlib.Path(a[1]).read_text())["prune"]["iterations"]
    line = {"sparsity_parameters": 0.5, "parameters": 10, "decoder_parameters": 8, "heads_kept": 3, "channels_kept": 9, "seconds_iteration": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps({**line, "iterations": iterations}) + "\n")
else:
    source = pathlib.Path(a[1])
    found = json.loads((source / "metrics.jsonl").read_text().splitlines()[-1]) if source.is_dir() else {"iterations": 1000}
    sets = dict(a[i + 1].split("=", 1) for i, x in enumerate(a) if x == "--set")
    rows, items = (json.loads(sets["evaluation." + kind]) for kind in ("perplexity", "multiple_choice"))
    one = {"perplexity": {d["name"]: {"perplexity": 5 + 1 / found["iterations"]} for d in rows},
           "multiple_choice": {d["name"]: {"acc_norm": 0.5} for d in items}}
    sizes = flag("--sparsity")
    points = {"points": [{"sparsity_parameters": float(x), **one} for x in sizes.split(",")]} if sizes else one
    if flag("--items"):
        import h5py
        with open(flag("--items"), "w") as file:
            for d in items:
                with h5py.File(d["tokens"]) as tokens:
                    for i in dict.fromkeys(tokens["item"][:].tolist()):
                        of = tokens["item"][:] == i
                        counted, right = tokens["loss_mask"][:][of].sum(1).tolist(), tokens["correct"][:][of]
                        values = [-2.0 * n if r else -3.0 * n for n, r in zip(counted, right)]
                        print(json.dumps({"task": d["name"], "item": i, "log_likelihoods": values}), file=file)
    pathlib.Path(flag("--out")).write_text(json.dumps(points))
'''


TEXTS = [f"{d}={MODEL}/text/{d}.calibration.jsonl={MODEL}/text/{d}.heldout.jsonl" for d in ("math", "code")]


class Resumption(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """Token files are made once."""
        cls.tokens = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.tokens)
        data.prepare(cls.tokens / "tokens", settings(domains=("math", "code"), items=4, heldout_items=6), [data.read(t) for t in TEXTS])

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        shutil.copytree(self.tokens, self.folder / "out")
        self.program = self.folder / "fake"
        self.program.write_text(FAKE.replace("@PYTHON@", sys.executable))
        self.program.chmod(0o755)

    def start(self, *flags, **environment):
        command = [ROOT / "launch/reproduce.sh", "--espalier", self.program, "--out", self.folder / "out", "--model", MODEL, "--texts", *TEXTS,
                   "--seeds", "2", "--items", "4", "--heldout-items", "6", "--jobs", "1", *flags]
        return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "FAKE": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **environment})

    def call(self, *flags, **environment):
        process = self.start(*flags, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    def finished(self):
        return {f.name for f in (self.folder / "out/results").glob("*.json")}

    def test_goes_on_after_a_failure(self):
        code, out, err = self.call("--claims", "2", FAKE_FAILS_AT="9")
        self.assertEqual(code, 1, out + err)
        self.assertIn("nothing works", err)
        finished = self.finished()
        self.assertIn("Not complete", (self.folder / "out/results.md").read_text())
        before = len(self.calls())
        code, out, err = self.call("--claims", "2")
        self.assertEqual(code, 0, out + err)
        self.assertIn(f"6 runs, {len(finished) - 1} of them finished before", out)  # one is the dense model
        for name in finished:
            self.assertFalse([c for c in self.calls()[before:] if name.removesuffix(".json") in c], "done again")
        self.assertEqual(len(self.finished()), 7)
        self.assertIn("within the spread: global better than local", out)
        before = len(self.calls())
        code, out, err = self.call("--claims", "2")
        self.assertEqual((code, len(self.calls())), (0, before), "a complete directory asks nothing of the program")

    def test_goes_on_after_a_kill_and_leaves_no_process(self):
        process = self.start("--claims", "1,4", FAKE_WAITS_AT="12")
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "waits").exists() or not (self.folder / "waits").read_text():
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(process.poll(), "ended early")
            time.sleep(0.02)
        process.kill()
        process.communicate()
        child = pathlib.Path("/proc") / (self.folder / "waits").read_text()
        while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2].split()[0]:
            self.assertLess(time.monotonic(), deadline, "the program outlives the script")
            time.sleep(0.02)
        finished = self.finished()
        self.assertGreater(len(finished), 1)
        before = len(self.calls())
        code, out, err = self.call("--claims", "1,4")
        self.assertEqual(code, 0, out + err)
        for name in finished:
            self.assertFalse([c for c in self.calls()[before:] if name.removesuffix(".json") in c], "done again")
        self.assertIn("held: 32 steps better than 1 step", out)
        found = json.loads((self.folder / "out/results.json").read_text())
        decision = [c for c in found["claims"] if c["claim"] == 4][0]
        for way in decision["ways"]:
            self.assertAlmostEqual(way["metrics"]["margin"]["values"][0], 1.0, places=12)
            self.assertEqual(way["metrics"]["accuracy"]["values"], [0.5, 0.5])

    def test_a_signal_stops_it_with_75(self):
        process = self.start("--claims", "2", FAKE_WAITS_AT="5")
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "waits").exists():
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(process.poll(), "ended early")
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 75, out + err)
        self.assertIn("the same command goes on", err)

    def test_other_settings_are_refused(self):
        self.assertEqual(self.call("--claims", "2")[0], 0)
        code, _, err = self.call("--claims", "2", "--rows", "5")
        self.assertEqual(code, 64)
        self.assertRegex(err, re.compile("other settings.*rows", re.S))
        self.assertEqual(self.call("--claims", "7")[0], 64)
        self.assertEqual(self.call("--nonsense")[0], 64)


if __name__ == "__main__":
    unittest.main()
