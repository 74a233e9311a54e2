"""Pictures of launch/python/espalier_report: the same bytes for the same numbers, and what hostile numbers and names do to them."""

import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ElementTree

import numpy as np

PACKAGES = pathlib.Path(__file__).resolve().parents[2] / "launch" / "python"
sys.path.insert(0, str(PACKAGES))
from espalier_report import drawing
from espalier_report.drawing import Bars, Grid, Histogram, Line, Matrix, Panel

NAMES = ["prose", "a$b$ <&> \x07\udcff", "x" * 500]


def examples(names=NAMES):
    """A figure of every kind, under its name."""
    x, chance = np.arange(11), np.random.default_rng(1)
    edges = np.linspace(0, 1, 21)
    some = [Line(n, x, chance.random(11), np.zeros(11), np.ones(11)) for n in names]
    return {
        "lines": drawing.lines([Panel(n, some, n, n, [3]) for n in names]),
        "heatmap": drawing.heatmap([Grid(n, chance.integers(1, 6, (4, 9)), n) for n in names], 4, "iteration"),
        "bars": drawing.bars([Bars(n, x, x + 1) for n in names]),
        "stacks": drawing.stacks(names[0], x, {n: x for n in names}),
        "histograms": drawing.histograms([Histogram(n, edges, {n: edges[1:]}, [(0.5, n)]) for n in names]),
        "matrices": drawing.matrices([Matrix(n, names, chance.random((3, 3))) for n in names]),
    }


def drawn_points(text):
    """Of each path that is drawn as a line, its number of points; definitions of letters and clips are no such paths."""
    paths = ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}path")
    wanted = [p.get("d") for p in paths if "fill: none" in (p.get("style") or "")]
    return [d.count("M") + d.count("L") for d in wanted]


class Drawing(unittest.TestCase):
    def test_every_kind_is_svg_without_a_date_and_without_links(self):
        for kind, figure in examples().items():
            with self.subTest(kind=kind):
                text = drawing.svg(figure)
                root = ElementTree.fromstring(text)
                self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
                self.assertNotIn("<dc:date>", text)
                outside = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and not v.startswith(("#", "data:"))]
                self.assertEqual(outside, [])

    def test_same_numbers_same_bytes_whatever_process_and_settings(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        (pathlib.Path(folder) / "matplotlibrc").write_text("font.size: 33\nlines.linewidth: 9\n")
        script = (
            f"import sys; sys.path[:0] = [{str(PACKAGES)!r}, {str(pathlib.Path(__file__).parent)!r}]\n"
            "from test_report_drawing import drawing, examples\nimport hashlib\n"
            "[print(k, hashlib.sha256(drawing.svg(f).encode()).hexdigest()) for k, f in examples().items()]"
        )
        first, second = (
            subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True).stdout
            for cwd in (PACKAGES, folder)
        )
        self.assertEqual(first, second)
        self.assertEqual(len(first.splitlines()), 6)
        other = drawing.svg(examples(["prose", "b", "c"])["lines"])
        self.assertNotEqual(other, drawing.svg(examples()["lines"]))

    def test_a_line_has_its_points_and_gaps(self):
        x = np.arange(50.0)
        gap = np.where(x == 25, np.nan, x)

        def longest(mean):
            text = drawing.svg(drawing.lines([Panel("p", [Line("a", x, mean)])]))
            return max(drawn_points(text))

        self.assertEqual(longest(x * x), 50)
        self.assertEqual(longest(gap * gap), 49)

    def test_one_name_has_one_look_in_all_panels(self):
        x = [0, 1]
        panels = [Panel("p", [Line("a", x, x), Line("b", x, x)]), Panel("q", [Line("b", x, x), Line("c", x, x)])]
        axes = drawing.lines(panels).axes
        colours = [[line.get_color() for line in one.get_lines()] for one in axes]
        self.assertEqual(colours[0][1], colours[1][0])
        self.assertEqual(len({colours[0][0], colours[0][1], colours[1][1]}), 3)
        many = [Line(str(i), x, x) for i in range(30)]
        lines = drawing.lines([Panel("p", many)]).axes[0].get_lines()
        self.assertEqual(len({(line.get_color(), line.get_linestyle()) for line in lines}), 30)

    def test_labels_of_axes_are_numbers(self):
        x, values = [0, 1, 2], [3.0, 40.0, 5e6]
        for log in (False, True):
            axes = drawing.lines([Panel("p", [Line("a", x, values)], log=log)]).axes[0]
            drawing.svg(axes.figure)
            texts = [label.get_text() for label in axes.get_yticklabels()]
            self.assertGreater(len(texts), 2)
            for text in texts:
                float(text.replace("\N{MINUS SIGN}", "-"))

    def test_what_cannot_be_drawn_leaves_a_picture(self):
        nothing = [np.nan, np.inf, -np.inf]
        drawing.svg(drawing.lines([Panel("", [Line("", [0, 1, 2], nothing)]), Panel("", []), Panel("", [Line("", [], [])])]))
        drawing.svg(drawing.heatmap([Grid("", np.full((1, 1), np.nan))], 1, ""))
        drawing.svg(drawing.bars([Bars("", [])]))
        drawing.svg(drawing.matrices([Matrix("", ["a"], [[np.nan]])]))
        drawing.svg(drawing.histograms([Histogram("", [0, 1], {"a": [0]})]))

    def test_names_keep_their_ends(self):
        self.assertEqual(drawing.shortened("prose"), "prose")
        self.assertEqual(drawing.shortened("abcdefghij", 5), "ab…ij")
        self.assertEqual(len(drawing.shortened("x" * 500, 28)), 28)
        self.assertEqual(drawing.shortened("a\nb\udcff"), "a\ufffdb\ufffd")

    def test_columns_cost_little(self):
        """A hundred times the channels are drawn in a few times the seconds."""

        def seconds(channels):
            values = np.random.default_rng(1).integers(1, 12, (64, channels))
            begin = time.process_time()
            drawing.svg(drawing.heatmap([Grid("channels", values)], 10, "iteration"))
            return time.process_time() - begin

        seconds(10)  # what is made only once
        few, many = min(seconds(276), seconds(276)), min(seconds(27648), seconds(27648))
        self.assertLess(many, 10 * few)


if __name__ == "__main__":
    unittest.main()
