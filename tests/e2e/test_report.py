"""launch/report.py on runs of the program: what a browser shows of the page, and that its numbers are those of the run."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import ROOT, Case, main, metrics_of, plan_of, run, write_options

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADINGS = ["Before and after", "Loss against size", "What fell, and when", "What each layer keeps", "Scores and the cut",
            "How alike the domains are", "Time", "Configuration"]
CHANGE = {
    "calibration": {"domains": [{"name": "a", "tokens": "a.h5"}, {"name": "<b>&", "tokens": "b.h5"}], "overlap": [1, 4]},
    "evaluation": {"every": 2, "perplexity": [{"name": "held", "tokens": "eval.h5"}], "multiple_choice": [{"name": "items", "tokens": "options.h5"}]},
    "checkpoint": {"keep_last": 9},
}


class Reported(Case):
    """What the tests below share; has none of its own."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write_options(cls.bench.folder / "options.h5")

    def report(self, run_dir, *more):
        result = subprocess.run([sys.executable, ROOT / "launch/report.py", run_dir, *more], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return pathlib.Path(result.stdout.strip())

    def pruned(self, name, **change):
        run_dir = self.folder / name
        self.succeeds("run", self.bench.config(name, **{**CHANGE, **change}), "--run-dir", run_dir)
        return run_dir


@unittest.skipUnless(BROWSER, "no browser (chromium; launch/setup.sh --tests installs it where apt can)")
class InABrowser(Reported):
    def setUp(self):
        super().setUp()
        from playwright.sync_api import sync_playwright

        playwright = sync_playwright().start()
        self.addCleanup(playwright.stop)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=sandbox)
        self.addCleanup(browser.close)
        self.context = browser.new_context(viewport={"width": 1366, "height": 768}, offline=True)

    def open(self, path):
        """The page; it may ask for nothing and say nothing."""
        asked, said = [], []
        page = self.context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        self.assertEqual((asked, said), ([path.as_uri()], []))
        return page

    def rows(self, page, table):
        return [[cell.inner_text() for cell in row.query_selector_all("td")] for row in page.query_selector_all(f"#{table} tbody tr")]

    def test_what_a_finished_run_shows(self):
        run_dir = self.pruned("finished")
        curve = self.folder / "curve.json"
        self.succeeds("eval", run_dir, "--sparsity", "0.15,0.25", "--out", curve)
        page = self.open(self.report(run_dir, "--curve", curve))
        self.assertEqual([h.inner_text() for h in page.query_selector_all("h2") if h.is_visible()], HEADINGS)
        self.assertIsNone(page.query_selector("#unfinished"))
        self.is_drawn(page)
        self.is_what_the_files_say(page, run_dir)
        self.is_what_inspect_says(page, run_dir)
        self.assertTrue(self.rows(page, "worth"), "no size is worth taking")

    def is_drawn(self, page):
        """Every picture has pixels and a place of its own, and nothing is wider than the window."""
        images = page.query_selector_all("img")
        self.assertEqual(len(images), 7)
        boxes = []
        for image in images:
            self.assertTrue(image.is_visible() and image.evaluate("i => i.complete && i.naturalWidth > 300"))
            boxes.append(image.bounding_box())
        for above, below in zip(boxes, boxes[1:]):
            self.assertGreaterEqual(below["y"], above["y"] + above["height"])
        for width in (1366, 800):
            page.set_viewport_size({"width": width, "height": 768})
            self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)

    def is_what_the_files_say(self, page, run_dir):
        lines = metrics_of(run_dir)
        first, last = lines[0], lines[-1]
        names = ("parameters", "decoder_parameters", "heads_kept", "kv_heads_kept", "channels_kept")
        shown = [(row[1], row[2]) for row in self.rows(page, "sizes")]
        self.assertEqual(shown, [(f"{first[name]:,}", f"{last[name]:,}") for name in names])
        names = ("sparsity_structures", "sparsity_parameters", "sparsity_total_parameters")
        self.assertEqual([row[2] for row in self.rows(page, "shares")], [f"{100 * last[name]:.1f}%" for name in names])
        held, items = self.rows(page, "evaluations")[:2]
        before, after = (line["perplexity"]["held"] for line in (first, last))
        self.assertEqual(held, ["held", "perplexity", f"{before:.3f}", f"{after:.3f}", f"{100 * (after / before - 1):+.1f}%"])
        before, after = (line["multiple_choice"]["items"]["acc"] for line in (first, last))
        self.assertEqual(items[:2], ["items", "acc"])
        self.assertEqual([text.split(" ")[0] for text in items[2:4]], [f"{before:.3f}", f"{after:.3f}"])
        losses = {row[0]: row[1:3] for row in self.rows(page, "losses")}
        self.assertEqual(losses, {name: [f"{lines[1]['loss'][name]:.4f}", f"{loss:.4f}"] for name, loss in last["loss"].items()})
        self.assertEqual(sorted(losses), ["<b>&", "a"])
        phases = {row[0] for row in self.rows(page, "phases")}
        self.assertEqual(phases, {phase for line in lines for phase in line["seconds"]})
        self.assertEqual(page.inner_text("pre").strip(), (run_dir / "config.resolved.yaml").read_text().strip())

    def is_what_inspect_says(self, page, run_dir):
        facts = json.loads(self.succeeds("inspect", run_dir, "--json").out)
        shown = [(row[1].split()[0], row[3].split()[0]) for row in self.rows(page, "layers")]
        self.assertEqual(shown, [(str(layer["query_heads"]), str(layer["channels"])) for layer in facts["layers"]])

    def test_what_an_interrupted_run_shows(self):
        run_dir = self.folder / "killed"
        config = self.bench.config("killed", **CHANGE)
        result = run("run", config, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=slice.enter;iter=3;action=kill9"})
        self.assertEqual(result.code, 137)
        page = self.open(self.report(run_dir))
        self.assertIn("This run has not finished: state running, iteration 3 of 4", page.inner_text("#unfinished"))
        self.assertEqual(self.rows(page, "sizes")[0][2], f"{metrics_of(run_dir)[2]['parameters']:,}")
        # The report is in nobody's way.
        self.succeeds("run", config, "--run-dir", run_dir)
        self.succeeds("verify", run_dir)
        self.assertEqual(page.evaluate("1 + 1"), 2)
        page.close()
        self.assertIsNone(self.open(self.report(run_dir)).query_selector("#unfinished"))


class Sizes(Reported):
    """Each size that a report lists is what `export --sparsity` writes, under every way of ranking."""

    def test_listed_sizes_are_what_export_writes(self):
        sys.path.insert(0, str(ROOT / "launch/python"))
        from espalier_report import facts
        from espalier_report.run import read_run

        for ranking, measure, unit in (
            ("global", "structures", "query_head"),
            ("local", "structures", "kv_group"),
            ("global_by_kind", "parameters", "query_head"),
        ):
            with self.subTest(ranking=ranking):
                prune = {"target": 0.4, "iterations": 4, "ranking": ranking, "measure": measure, "attention_unit": unit,
                         "protect": {"first_layers": 0, "last_layers": 1}}
                run_dir = self.pruned(ranking, prune=prune)
                self.report(run_dir)
                found = read_run(run_dir)
                self.assertEqual(found.measure, measure)
                for kind, matrix in found.plan.removed_at.items():
                    self.assertTrue((matrix == plan_of(run_dir / "plan.h5")[1][f"{kind}/removed_at"]).all())
                sizes = [size.state for size in facts.worth_taking(found)]
                self.assertTrue(sizes)
                for number, state in enumerate(sizes):
                    out = self.folder / f"{ranking}-{number}"
                    self.succeeds("export", run_dir, "--sparsity", repr(state.target), "--out", out)
                    inspected = json.loads(self.succeeds("inspect", out, "--json").out)
                    self.assertEqual(inspected["parameters"], state.counts["parameters"])


if __name__ == "__main__":
    main()
