"""What a reader gets: results.json, a CSV per claim, and the page as Markdown and HTML with a plot per claim."""

import csv
import html
import json

from .verdicts import HELD, HIGHER_IS_BETTER, NOT, judge, metrics_of, metric_of, rows_of, spread

TITLES = {"mean": "geometric mean", "worst": "worst rise", "accuracy": "accuracy", "margin": "margin"}
RULE = ("An ordering **held** when every seed of the better way is better than every seed of the other, **did not hold** when it is the "
        "other way round for all of them, and is **within the spread** otherwise.")
COLUMNS = ("Perplexity of each domain's held-out text and their geometric mean; *worst rise*: the largest ratio to the dense model's "
           "perplexity over the domains; *removed*: of the decoder parameters; *seconds*: pruning on one thread, without evaluation. Numbers "
           "are means over calibration seeds, lowest to highest in brackets.")


def number(value, metric=""):
    return f"{value:.3f}" if metric in ("accuracy", "margin", "worst") or abs(value) < 9.9995 else f"{value:.2f}"


def cell(s, metric=""):
    text = number(s.mean, metric)
    return text if len(s.values) == 1 else f"{text} [{number(s.low, metric)}, {number(s.high, metric)}]"


def of_field(row, field, form):
    values = [form(r[field]) for r in row.results]
    return values[0] if len(set(values)) == 1 else f"{min(values, key=float)} to {max(values, key=float)}"


def table(claim, rows, dense, domains):
    """Header and lines of texts."""
    names = metrics_of(claim, domains)
    header = ["way", *(TITLES.get(n, n) for n in names), "removed, %", "heads", "channels", "seconds"]
    lines = [["dense", *(number(metric_of(dense, n, dense), n) for n in names), "0", "", "", ""]]
    for row in rows:
        cells = [cell(spread(row.results, n, dense), n) for n in names]
        seconds = sum(r["seconds"] for r in row.results) / len(row.results)
        lines.append([row.way, *cells, of_field(row, "removed", lambda x: f"{100 * x:.1f}"), of_field(row, "heads", str),
                      of_field(row, "channels", str), f"{seconds:.1f}"])
    return header, lines


def sentence(judged):
    o = judged.ordering
    what = TITLES.get(o.metric, f"perplexity of {o.metric}")
    return [f"{o.better} better than {o.worse}", what, cell(judged.better, o.metric), cell(judged.worse, o.metric), judged.verdict, o.source]


VERDICT_HEADER = ["ordering", "by", "the first", "the second", "verdict", "said by"]


class Section:
    """One claim with its numbers."""

    def __init__(self, claim, bench, dense):
        self.claim, self.rows = claim, rows_of(claim, bench)
        self.complete = self.rows is not None
        if self.complete:
            self.judged = judge(claim, self.rows, dense, bench.settings.seeds)
            self.header, self.lines = table(claim, self.rows, dense, bench.settings.domains)
            self.verdicts = [sentence(j) for j in self.judged]

    @property
    def name(self):
        return f"claim-{self.claim.number}"

    def write_csv(self, out, dense, domains):
        """A line for each run, and each of its sizes."""
        names = [n for n in metrics_of(self.claim, domains)]
        with open(out / f"{self.name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["way", "seed", "removed", *names])
            for row in self.rows:
                for seed, result in enumerate(row.results):
                    for point in result["points"]:
                        here = [metric_of(point, n, dense) if n not in HIGHER_IS_BETTER or n in point else "" for n in names]
                        writer.writerow([row.way, seed, point["removed"], *here])

    def record(self, dense, domains):
        return {
            "claim": self.claim.number, "title": self.claim.title,
            "ways": [{"way": row.way, "runs": row.runs, "seeds": row.results,
                      "metrics": {n: vars(spread(row.results, n, dense)) for n in metrics_of(self.claim, domains)}} for row in self.rows],
            "orderings": [{**vars(j.ordering), "better_values": j.better.values, "worse_values": j.worse.values, "verdict": j.verdict}
                          for j in self.judged],
        }


def markdown_table(header, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def tally(sections):
    """(held, asked) of the orderings that the papers state."""
    asked = [j for s in sections if s.complete for j in s.judged if j.ordering.source.startswith("arXiv")]
    return sum(j.verdict == HELD for j in asked), sum(j.verdict == NOT for j in asked), len(asked)


def markdown(sections, facts, pictures):
    held, failed, asked = tally(sections)
    parts = ["# The papers' comparisons, in small", "\n".join(f"- {f}" for f in facts),
             f"Of {asked} orderings that the papers state, {held} held, {failed} did not, {asked - held - failed} are within the spread.",
             RULE, COLUMNS]
    for s in sections:
        parts.append(f"## {s.claim.number}. {s.claim.title}")
        if s.claim.note:
            parts.append(s.claim.note)
        if not s.complete:
            parts.append("Not complete: the same command goes on.")
            continue
        parts.append(markdown_table(s.header, s.lines))
        if s.name in pictures:
            parts.append(f"![{s.claim.title}]({s.name}.svg)")
        parts.append(markdown_table(VERDICT_HEADER, s.verdicts))
    return "\n\n".join(parts) + "\n"


STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #1c1c1c }
table { border-collapse: collapse; margin: 1em 0 } td, th { border-bottom: 1px solid #ccc; padding: .25em .7em; text-align: left }
td { font-variant-numeric: tabular-nums } .held { color: #176a2a } .not { color: #a32020 } svg { max-width: 100%; height: auto }"""


def html_table(header, lines):
    def cells(line, tag):
        marks = {HELD: " class=held", NOT: " class=not"}
        return "<tr>" + "".join(f"<{tag}{marks.get(c, '')}>{html.escape(c)}</{tag}>" for c in line) + "</tr>"

    return "<table>" + cells(header, "th") + "".join(cells(line, "td") for line in lines) + "</table>"


def inline(text):
    """Markdown's marks of this module's own sentences, in HTML."""
    text = html.escape(text)
    for mark, tag in (("**", "b"), ("*", "i"), ("`", "code")):
        pieces = text.split(mark)
        text = "".join(p if i % 2 == 0 else f"<{tag}>{p}</{tag}>" for i, p in enumerate(pieces))
    return text


def page(sections, facts, pictures):
    held, failed, asked = tally(sections)
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>The papers' comparisons, in small</title>",
             f"<style>{STYLE}</style><h1>The papers' comparisons, in small</h1>",
             "<ul>" + "".join(f"<li>{inline(f)}</li>" for f in facts) + "</ul>",
             f"<p>Of {asked} orderings that the papers state, {held} held, {failed} did not, {asked - held - failed} are within the spread.</p>",
             f"<p>{inline(RULE)}</p><p>{inline(COLUMNS)}</p>"]
    for s in sections:
        parts.append(f"<h2>{s.claim.number}. {html.escape(s.claim.title)}</h2>")
        if s.claim.note:
            parts.append(f"<p>{inline(s.claim.note)}</p>")
        if not s.complete:
            parts.append("<p>Not complete: the same command goes on.</p>")
            continue
        parts += [html_table(s.header, s.lines), pictures.get(s.name, ""), html_table(VERDICT_HEADER, s.verdicts)]
    return "\n".join(parts) + "</html>\n"


def write(out, claims, bench, dense, facts, draw):
    """Everything that is complete; returns the sections. `draw(section)` gives an SVG, or None."""
    sections = [Section(claim, bench, dense) for claim in claims]
    pictures = {}
    for s in sections:
        if not s.complete:
            continue
        s.write_csv(out, dense, bench.settings.domains)
        picture = draw(s, dense, bench.settings)
        if picture:
            pictures[s.name] = picture
            (out / f"{s.name}.svg").write_text(picture)
    complete = [s for s in sections if s.complete]
    held, failed, asked = tally(sections)
    (out / "results.json").write_text(json.dumps({
        "schema": 1, "facts": facts, "settings": vars(bench.settings), "complete": len(complete) == len(sections), "dense": dense,
        "papers": {"held": held, "did_not_hold": failed, "asked": asked}, "claims": [s.record(dense, bench.settings.domains) for s in complete],
    }, indent=1))
    (out / "results.md").write_text(markdown(sections, facts, pictures))
    (out / "index.html").write_text(page(sections, facts, pictures))
    return sections
