"""Texts of the domains, their two halves, and what is made of them: token files and the items of a decision task."""

import dataclasses
import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys

from espalier_launch.stop import BAD_CONTENT, USAGE, Stop, stop_of

ROOT = pathlib.Path(__file__).resolve().parents[3]
OPTIONS = 4
MOST_ITEMS = 1000
LENGTHS = ((120, 40), (60, 20), (30, 12))  # of context and answer, in characters at least: the first that gives enough items
ITEM_TOKENS = 160  # an item with a longer option falls


@dataclasses.dataclass(frozen=True)
class Texts:
    """One domain's documents: calibrated on, and held out."""

    name: str
    calibration: tuple
    heldout: tuple


def documents(path):
    """The field `text` of every line of a JSON Lines file."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise stop_of(error, path) from error
    except UnicodeDecodeError as error:
        raise Stop(BAD_CONTENT, f"'{path}' is no text", str(error), "give a JSON Lines file in UTF-8") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Stop(BAD_CONTENT, f"{path}:{number} has no field text", str(error), "give JSON Lines with a field text") from error
    return found


def first_line(text):
    return text.partition("\n")[0].strip()


def halves(texts):
    """Documents in two halves; what begins with the same line (one task in several languages, say) stays together."""
    sides = ([], [])
    for text in texts:
        sides[hashlib.sha256(first_line(text).encode()).digest()[0] & 1].append(text)
    return sides


def read(argument):
    """NAME=FILE, to be halved, or NAME=CALIBRATION=HELDOUT."""
    name, *files = argument.split("=")
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or len(files) not in (1, 2):
        raise Stop(USAGE, f"--texts {argument}", "it is not NAME=FILE or NAME=CALIBRATION=HELDOUT", "write for example prose=prose.jsonl")
    sides = [documents(f) for f in files]
    calibration, heldout = sides if len(sides) == 2 else halves(sides[0])
    shared = set(calibration) & set(heldout)
    if shared:
        raise Stop(BAD_CONTENT, f"{argument}: {len(shared)} documents are in both files", "what is evaluated may not be calibrated on",
                      "take them out of one, or give one file")
    return Texts(name, tuple(calibration), tuple(heldout))


# ---- a decision task -----------------------------------------------------------------------------


def pieces(text, context, answer):
    """Contexts with their continuations, cut at single spaces so that context + " " + continuation is the text."""
    spaces = [m.start() for m in re.finditer(r"(?<=\S) (?=\S)", text)]
    start, found = 0, []
    while True:
        cut = next((p for p in spaces if p >= start + context), None)
        end = next((p for p in spaces if cut is not None and p >= cut + 1 + answer), None)
        if end is None:
            return found
        found.append((text[start:cut], text[cut + 1 : end]))
        start = end + 1


def items(texts, count, lengths, seed=0):
    """Items {context, choices, answer}: a text's own continuation among those of other texts."""
    generator = random.Random(seed)
    by_text = [(first_line(t), pieces(t, *lengths)) for t in dict.fromkeys(texts)]
    all_pieces = [(line, context, answer) for line, cut in by_text for context, answer in cut]
    generator.shuffle(all_pieces)
    made = []
    for line, context, answer in all_pieces:
        others = sorted({a for other, _, a in all_pieces if other != line and a != answer})
        if len(made) == count or len(others) < OPTIONS - 1:
            break
        wrong = generator.sample(others, OPTIONS - 1)
        right = generator.randrange(OPTIONS)
        made.append({"context": context, "choices": wrong[:right] + [answer] + wrong[right:], "answer": right})
    return made


# ---- token files ---------------------------------------------------------------------------------


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def tokenize(model, source, out, *flags):
    command = [sys.executable, ROOT / "launch/tokenize.py", "--tokenizer", model, "--quiet", "--force", "--out", out, *flags, source]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Stop(done.returncode, f"'{source}' could not be tokenized", done.stderr.strip(), "see above")


def write_rows(folder, model, name, part, texts, window, limit, *other_flags):
    source = folder / f"{name}.{part}.jsonl"
    write_lines(source, [{"text": t} for t in texts])
    flags = ["--max-sequences", limit] if limit else []
    tokenize(model, source, folder / f"{name}.{part}.h5", "--sequence-tokens", window, "--seed", 0, *flags, *other_flags)


def write_items(folder, model, name, part, made):
    source = folder / f"{name}.{part}.items.jsonl"
    write_lines(source, made)
    tokenize(model, source, folder / f"{name}.{part}.items.h5", "--task", "multiple_choice", "--layout", "hellaswag",
             "--sequence-tokens", ITEM_TOKENS)


def write_answers(folder, model, name, made):
    """The right continuations alone, with the loss on them."""
    source = folder / f"{name}.answers.jsonl"
    write_lines(source, [{"context": i["context"], "answer": " " + i["choices"][i["answer"]]} for i in made])
    tokenize(model, source, folder / f"{name}.answers.h5", "--template", "{context}{answer}", "--loss-on", "answer",
             "--sequence-tokens", ITEM_TOKENS)


def prepare(folder, s, texts):
    """Every token file, once. Seeds draw from the calibration files; the held-out ones are evaluated whole."""
    done = folder / "complete"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for domain in texts:
        for part, side, limit, least, most in (
            ("calibration", domain.calibration, None, s.items, MOST_ITEMS),
            ("heldout", domain.heldout, s.heldout_rows, 2, s.heldout_items),
        ):
            write_rows(folder, s.model, domain.name, part, side, s.window, limit)
            made = next((m for m in (items(side, most, lengths) for lengths in LENGTHS) if len(m) >= min(most, 2 * least)), [])
            if not made:
                raise Stop(BAD_CONTENT, f"{domain.name}: fewer than {2 * least} items for {part}",
                              "its documents are too few or too short", "give more text")
            write_items(folder, s.model, domain.name, part, made)
            if part == "calibration":
                write_answers(folder, s.model, domain.name, made)
    done.touch()
