"""What launch/report.py makes of a run directory: the numbers of its tables and pictures, and the page."""

import base64
import html.parser
import json
import math
import pathlib
import re
import shutil
import sys
import time
import unittest

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from report_case import ATTENTION, CONFIG, MLP, Case, plan_arrays, refit, row, status, write_commit, write_plan, write_scores
from espalier_report import facts, page, pictures
from espalier_report.run import read_run


class Document(html.parser.HTMLParser):
    """Tables by id as lists of rows, addresses that the page names, its headings, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.headings, self.tags, self.text = {}, [], [], [], ""
        self.rows = self.into = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.addresses += [v for k, v in attributes.items() if k in ("href", "src", "srcset", "action", "data", "poster")]
        if tag == "table":
            self.rows = self.tables[attributes["id"]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")
        self.into = tag

    def handle_endtag(self, tag):
        self.into = None

    def handle_data(self, data):
        self.text += data
        if self.into in ("td", "th"):
            self.rows[-1][-1] += data
        if self.into in ("h1", "h2"):
            self.headings[-1] += data


class Tables(Case):
    def test_before_and_after(self):
        tables = Document(self.page()).tables
        self.assertEqual([r[:4] for r in tables["sizes"][1:]], [
            ["parameters", "100,000", "79,000", "21.0%"],
            ["decoder parameters", "90,000", "69,000", "23.3%"],
            ["query heads", "12", "7", "41.7%"],
            ["KV heads", "6", "6", "0.0%"],
            ["MLP channels", "30", "14", "53.3%"],
        ])
        self.assertEqual([r[:3] for r in tables["shares"][1:]], [
            ["structures (prune.measure)", "0.0%", "50.0%"], ["decoder parameters", "0.0%", "45.0%"], ["all parameters", "0.0%", "40.0%"]])
        self.assertTrue(all(r[3] for r in tables["shares"][1:]), "a percentage without its definition")
        self.assertEqual(tables["evaluations"][1:], [
            ["prose", "perplexity", "10.000", "13.000", "+30.0%"],
            ["code", "perplexity", "20.000", "21.000", "+5.0%"],
            ["arc", "acc", "0.500 ± 0.050", "0.200 ± 0.050", "-30.0 points"],
        ])
        self.assertEqual(tables["losses"][1:], [["prose", "1.0000", "1.1000", "+0.1000"], ["code", "2.0000", "2.0500", "+0.0500"]])
        self.assertEqual(tables["layers"][1:], [
            ["0", "3 of 4", "75.0%", "4 of 10", "40.0%"],
            ["1", "0 of 4", "0.0%", "0 of 10", "0.0%"],
            ["2", "4 of 4", "100.0%", "10 of 10", "100.0%"],
        ])
        self.assertEqual([r[:3] for r in tables["phases"][1:]], [
            ["calibrate", "6.00 s", "70.6%"], ["save", "1.50 s", "17.6%"], ["load", "1.00 s", "11.8%"]])

    def test_sizes_worth_taking(self):
        # Held out: 3.0% after iteration 2 (code), 30% after 3 (prose). Calibration: exp(0.03) - 1 = 3.05% after 1, exp(0.1) - 1 = 10.5% after 2.
        tables = Document(self.page()).tables
        self.assertEqual(tables["worth"][1:], [
            ["0.16666666666666666", "16.7%", "15.0%", "13.3%", "93,000", "–", "+3.0% (code)", "5% to 10% calibration"],
            ["0.3333333333333333", "33.3%", "30.0%", "26.7%", "86,000", "+3.0% (code)", "+10.5% (prose)",
             "5% to 20% held out, 20% to 50% calibration"],
            ["0.5", "50.0%", "45.0%", "40.0%", "79,000", "+30.0% (prose)", "–", "50% held out"],
        ])

    def test_what_multiples_of_channels_cost(self):
        self.assertNotIn("prune.width_multiple", self.page())
        lines = [row(i) for i in range(4)]
        for line, importance, free in zip(lines[1:], (3.0, 4.0, 5.0), (2.5, 4.0, 3.5), strict=True):
            line["rounding"] = {"importance": importance, "free_importance": free}
        (self.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.assertIn("+20.00% importance removed, against single channels", self.page())

    def test_a_margin_is_no_perplexity(self):
        (self.run_dir / "config.resolved.yaml").write_text(CONFIG.replace("prose.h5, objective: causal_lm", "prose.h5, objective: margin"))
        rises = facts.on_calibration(read_run(self.run_dir))
        self.assertEqual([rise.domain for _, rise in rises], ["code"] * 3)
        self.assertAlmostEqual(rises[-1][1].share, math.exp(0.05) - 1)

    def test_a_curve_adds_sizes(self):
        point = {"sparsity": 0.4, "sparsity_structures": 0.4, "sparsity_parameters": 0.3, "sparsity_total_parameters": 0.2, "parameters": 83_000,
                 "plan_digest": "e" * 64, "perplexity": {"prose": {"perplexity": 11.8}, "code": {"perplexity": 20.7}}}
        curve = self.folder / "curve.json"
        curve.write_text(json.dumps({"points": [point]}))
        rows = Document(self.page("--curve", curve)).tables["worth"]
        self.assertIn(["0.4", "40.0%", "30.0%", "20.0%", "83,000", "+18.0% (prose)", "–", "20% held out"], rows)
        point["sparsity_structures"] = 14 / 42
        curve.write_text(json.dumps({"points": [point]}))
        code, _, err = self.program(self.run_dir, "--curve", curve)
        self.assertEqual(code, 65)
        self.assertIn("is a curve of another run", err)


class Refit(Case):
    def refitted(self, **change):
        (self.run_dir / "refit.json").write_text(json.dumps({**refit(), **change}))
        return Document(self.page())

    def test_tables(self):
        document = self.refitted()
        # Geometric means of 10 and 20, 13 and 21, 11 and 20.5.
        self.assertEqual(document.tables["refitted"][1:], [
            ["prose", "perplexity", "10.000", "13.000", "11.000", "+10.0%"],
            ["code", "perplexity", "20.000", "21.000", "20.500", "+2.5%"],
            ["geometric mean", "perplexity", "14.142", "16.523", "15.017", "+6.2%"],
            ["arc", "acc", "0.500 ± 0.050", "0.200 ± 0.050", "0.400 ± 0.050", "-10.0 points"],
        ])
        self.assertIn("3 of 5 matrices were solved anew, the guard kept 2 as they were. On 600 tokens, 15.0 to 150.0 for each input",
                      " ".join(document.text.split()))
        self.assertEqual(document.tables["matrices"][1:], [
            ["0", "o_proj", "12", "50.0", "0.1", "0.3000", "0.2000", "refitted"],
            ["0", "down_proj", "40", "15.0", "10", "0.2500", "0.2600", "kept"],
            ["1", "o_proj", "0", "–", "–", "–", "–", "no input"],
            ["1", "down_proj", "4", "150.0", "0.001", "0.5000", "0.1250", "refitted"],
            ["2", "o_proj", "16", "37.5", "1", "0.1250", "0.0625", "refitted"],
            ["2", "down_proj", "10", "60.0", "1e-05", "0.7500", "–", "kept as updated"],
        ])
        self.assertEqual([r[:3] for r in document.tables["phases"][1:]], [
            ["calibrate", "6.00 s", "46.2%"], ["refit", "4.00 s", "30.8%"], ["save", "1.50 s", "11.5%"], ["load", "1.00 s", "7.7%"],
            ["evaluate", "0.50 s", "3.8%"]])
        self.assertIn("+10.0%perplexity, prose, after the refit", document.text)
        self.assertEqual(document.headings, ["run", *(title for _, title in page.SECTIONS)])

    def test_projections_come_before_the_output_they_lead_to(self):
        half = refit()["halves"][3]
        facts = {key: value for key, value in half.items() if key not in ("layer", "kind")}
        projections = {"gate_proj": {**facts, "outcome": "dense"}, "up_proj": {**facts, "width": 20}}
        document = self.refitted(halves=[{**half, "projections": projections}])
        self.assertEqual([row[:3] + row[-1:] for row in document.tables["matrices"][1:]], [
            ["1", "gate_proj", "4", "kept"], ["1", "up_proj", "20", "refitted"], ["1", "down_proj", "4", "refitted"]])
        self.assertIn("2 of 3 matrices were solved anew, the guard kept 1", " ".join(document.text.split()))

    def test_one_of_another_plan_or_none(self):
        document = self.refitted(plan_digest="e" * 64)
        self.assertNotIn("After the refit", document.headings)
        self.assertNotIn("refitted", document.tables)

    def test_without_evaluations(self):
        document = self.refitted(perplexity={}, multiple_choice={})
        self.assertNotIn("refitted", document.tables)
        self.assertEqual(len(document.tables["matrices"]), 7)

    def test_a_damaged_one(self):
        good = refit()["halves"][0]
        for change in ({"halves": [3]}, {"halves": [{**good, "kind": "x"}]}, {"halves": [{**good, "outcome": "well"}]},
                       {"halves": [{**good, "ridge": "small"}]}, {"halves": [{**good, "error_after": "none"}]}, {"tokens": -1},
                       {"halves": [{**good, "projections": 3}]}, {"halves": [{**good, "projections": {"q_proj": 3}}]},
                       {"perplexity": {"prose": None}}, {"seconds": {"refit": "long"}}):
            with self.subTest(change=change):
                (self.run_dir / "refit.json").write_text(json.dumps({**refit(), **change}))
                code, _, err = self.program(self.run_dir)
                self.assertEqual(code, 65, err)
                self.assertIn("refit.json", err)


class Pictures(Case):
    def test_map_has_each_unit_at_its_iteration(self):
        figure = pictures.removal(read_run(self.run_dir))
        heads, channels, heads_fell, channels_fell = (axes.images[0].get_array() for axes in figure.axes[:4])
        for matrix, drawn, ordered in ((ATTENTION, heads, heads_fell), (MLP, channels, channels_fell)):
            expected = [[at if at > 0 else 4 for at in layer] for layer in matrix]
            self.assertEqual(drawn.tolist(), expected)
            self.assertEqual(ordered.tolist(), [sorted(layer) for layer in expected])

    def test_bins_are_means_of_neighbours(self):
        for width in (1, 7, 1024, 1025, 2048, 5000):
            matrix = np.random.default_rng(width).random((3, width))
            step = next(n for n in range(1, width + 1) if n * pictures.BINS >= width)
            expected = [[sum(layer[i : i + step]) / len(layer[i : i + step]) for i in range(0, width, step)] for layer in matrix.tolist()]
            np.testing.assert_allclose(pictures.binned(matrix), expected, rtol=1e-12)

    def test_bars_are_what_is_kept(self):
        heads, channels = pictures.kept(read_run(self.run_dir)).axes
        self.assertEqual([[p.get_height() for p in axes.patches] for axes in (heads, channels)], [[4, 4, 4, 3, 0, 4], [10, 10, 10, 4, 0, 10]])

    def test_every_score_is_on_its_side_of_the_cut(self):
        run = read_run(self.run_dir)
        scores = run.scores[0]
        self.assertEqual((scores.iteration, len(scores.lists["mlp"][2])), (3, 9), "four kept in layer 0, five fell")
        fell = pictures.fell_now(scores, "mlp")
        self.assertEqual(int(fell.sum()), 5)
        drawn = pictures.histogram("", scores.lists["mlp"][2], fell, scores.lists["mlp"][2][fell].max())
        removed, kept = drawn.counts["removed in this iteration"], drawn.counts["kept"]
        self.assertEqual((removed.sum(), kept.sum()), (5, 4))
        cut = drawn.cuts[0][0]
        self.assertAlmostEqual(cut, math.log10(10.0**3.09))
        self.assertEqual(removed[drawn.edges[:-1] > cut].sum(), 0)
        self.assertEqual(kept[drawn.edges[1:] <= cut + 1e-9].sum(), 0)

    def test_scores_of_any_sign_and_all_alike(self):
        fell = np.array([True, False, False])
        for values in ([-2.0, 1.0, 5.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0], [0.0, 1e-300, 1e300], [1e-310, 2e-310, 3e-310]):
            with self.subTest(values=values):
                drawn = pictures.histogram("", np.array(values), fell, values[0])
                zeros = values.count(0.0) if "0 are" not in drawn.x and "are 0" in drawn.x else 0
                self.assertEqual(sum(int(c.sum()) for c in drawn.counts.values()), 3 - zeros)
                self.assertTrue((np.diff(drawn.edges) > 0).all())

    def test_many_pairs_of_domains_are_one_line(self):
        chance = np.random.default_rng(3)
        names = [str(n) for n in range(5)]
        matrices = chance.random((4, 5, 5))
        matrices[1] = np.nan
        pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
        (line,) = pictures.pairs_panel("", names, pairs, matrices, "layer").lines
        for layer in (0, 2, 3):
            values = [matrices[layer, a, b] for a, b in pairs]
            np.testing.assert_allclose([line.mean[layer], line.low[layer], line.high[layer]], [sum(values) / 10, min(values), max(values)])
        self.assertTrue(np.isnan(line.mean[1]))
        self.assertEqual(len(pictures.pairs_panel("", names, pairs[:6], matrices, "layer").lines), 6)

    def test_loss_is_that_of_the_model_before_the_pass(self):
        perplexity, loss, accuracy = pictures.curves(read_run(self.run_dir)).axes[:3]
        prose = loss.get_lines()[0].get_xydata()
        np.testing.assert_allclose(prose, [[0, 1.0], [100 / 6, 1.004], [100 / 3, 1.1]])
        prose = perplexity.get_lines()[0].get_xydata()
        np.testing.assert_allclose(prose, [[0, 10.0], [100 / 3, 10.1], [50, 13.0]])
        self.assertEqual(len(accuracy.collections), 1, "no band of standard errors")


class Page(Case):
    def test_sections_and_pictures(self):
        text = self.page(drawn=True)
        document = Document(text)
        titles = [title for name, title in page.SECTIONS if name != "refit"]
        self.assertEqual(document.headings, ["run", *titles])
        images = [a for tag, a in document.tags if tag == "img"]
        self.assertEqual(len(images), 7)
        for image in images:
            self.assertTrue(image["alt"])
            kind, content = image["src"].split(",")
            self.assertEqual(kind, "data:image/svg+xml;base64")
            self.assertIn("<svg", base64.b64decode(content).decode())
        self.assertNotIn("This run has not finished", text)
        self.assertIn(CONFIG, document.text)

    def test_nothing_comes_from_elsewhere(self):
        document = Document(self.page())
        ids = {a["id"] for _, a in document.tags if "id" in a}
        for address in document.addresses:
            self.assertTrue(address.startswith("data:") or address[1:] in ids, address)
        self.assertEqual([tag for tag, _ in document.tags if tag in ("script", "link", "iframe", "object", "embed")], [])
        self.assertEqual(len(ids), len([1 for _, a in document.tags if "id" in a]), "an id twice")

    def test_same_run_same_bytes(self):
        self.assertEqual(self.page(drawn=True), self.page("--out", self.folder / "again.html", drawn=True))

    def test_text_of_the_user_is_text(self):
        evil = "<script>alert(1)</script>{{ 7 * 7 }}\"'&amp;\x1b[31m"
        lines = [row(i) for i in range(4)]
        for line in lines:
            for field in ("loss", "perplexity"):
                line[field] = {evil if name == "prose" else name: value for name, value in line[field].items()}
        (self.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (self.run_dir / "status.json").write_text(json.dumps(status(state="failed", reason=evil, exit_code=70)))
        (self.run_dir / "provenance.json").write_text(json.dumps({"program": {"version": evil}, "hosts": [evil], "command": [evil], "layout": 3}))
        (self.run_dir / "config.resolved.yaml").write_text(CONFIG + "# " + evil.replace("\x1b", "") + "\n")
        overlap = json.loads((self.run_dir / "overlap.json").read_text())
        (self.run_dir / "overlap.json").write_text(json.dumps({**overlap, "domains": [evil, "code"]}))
        moved = self.run_dir.rename(self.folder / "<b>x{{ 7 * 7 }}")
        self.run_dir = moved
        text = self.page(drawn=True)
        document = Document(text)
        self.assertEqual([tag for tag, _ in document.tags if tag in ("script", "b") and tag == "script"], [])
        self.assertNotIn("\x1b", text)
        self.assertNotIn("49", re.sub(r"base64,[^\"]*", "", document.headings[0] + document.tables["evaluations"][1][0]))
        self.assertEqual(document.tables["evaluations"][1][0], evil.replace("\x1b", "\\x1b"))
        self.assertEqual(document.headings[0], "<b>x{{ 7 * 7 }}")

    def test_a_path_of_any_bytes(self):
        self.run_dir = self.run_dir.rename(pathlib.Path(str(self.folder) + "/caf\udce9"))
        code, out, err = self.program(self.run_dir)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("caf\\xe9/report.html", out)
        self.assertIn("caf\\xe9", (self.run_dir / "report.html").read_text())

    def test_an_unfinished_run_says_so(self):
        (self.run_dir / "status.json").write_text(json.dumps(status(state="stopped", iteration=2, exit_code=75, reason="a request to stop")))
        document = Document(self.page())
        self.assertIn("This run has not finished", document.text)
        words = "state stopped, iteration 2 of 3, last sign of life 2030-01-31T12:00:00Z, reason a request to stop, exit code 75"
        self.assertIn(words, document.text)

    def test_as_far_as_a_run_is(self):
        """Files go one after the other, down to what a run has before its first iteration."""
        for names, words in (
            (["overlap.json"], None),
            (["ckpt/iter-000003/state.h5", "ckpt/iter-000003/MANIFEST.json"], "There is no commit with scores."),
            (["plan.h5"], "No unit has fallen yet."),
            (["metrics.jsonl"], "The run has measured nothing yet."),
            (["provenance.json"], None),
            (["status.json"], "This run has not finished"),
        ):
            for name in names:
                (self.run_dir / name).unlink()
            if (self.run_dir / "ckpt/iter-000003").exists() and len(names) == 2:
                (self.run_dir / "ckpt/iter-000003").rmdir()
            with self.subTest(names=names):
                text = Document(self.page()).text
                if words:
                    self.assertIn(words, text)
        self.assertNotIn("How alike the domains are", text)

    def test_only_the_first_line(self):
        (self.run_dir / "metrics.jsonl").write_text(json.dumps(row(0)) + "\n")
        (self.run_dir / "status.json").write_text(json.dumps(status(state="running", iteration=1, exit_code=None)))
        self.assertIn("100,000", self.page())

    def big_run(self, channels):
        """A run of 64 layers; what fell when."""
        chance = np.random.default_rng(1)
        matrices = {
            "attention": chance.integers(-1, 101, (64, 40)).astype("int32"),
            "mlp": chance.integers(-1, 101, (64, channels)).astype("int32"),
        }
        for matrix in matrices.values():
            matrix[matrix == 0] = -1
        with h5py.File(self.run_dir / "plan.h5", "w") as file:
            write_plan(file, matrices, 100)

        def fill(file):
            write_plan(file, matrices, 100)
            for kind, matrix in matrices.items():
                places = np.argwhere((matrix < 0) | (matrix == 100)).astype("int32")
                file[f"{kind}/layer"], file[f"{kind}/unit"] = places[:, 0], places[:, 1]
                file[f"{kind}/score"] = chance.lognormal(size=len(places))
            file.attrs.update(criterion="taylor", normalization="gisp")

        shutil.rmtree(self.run_dir / "ckpt/iter-000100", ignore_errors=True)
        write_commit(self.run_dir / "ckpt/iter-000100", fill)
        return matrices

    def test_64_layers_of_27648_channels(self):
        """A hundred times the channels take a few times the seconds."""
        seconds = {}
        for channels in (276, 27648):
            matrices = self.big_run(channels)
            begin = time.process_time()
            text = self.page(drawn=True)
            seconds[channels] = time.process_time() - begin
        self.assertLess(seconds[27648], 10 * seconds[276])
        self.assertLess(len(text), 8 << 20)
        rows = Document(text).tables["layers"][1:]
        kept = int((matrices["mlp"][63] < 0).sum())
        self.assertEqual(rows[63][3], f"{kept:,} of 27,648")


if __name__ == "__main__":
    unittest.main()
