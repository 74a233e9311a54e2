"""Prompts for exact match: questions with worked examples before them, as lm-evaluation-harness
0.4.13 asks those of GSM8K."""

import copy
import random

from espalier_launch.stop import BAD_CONTENT, Stop

from . import documents, sources
from .documents import value_of
from .rows import BATCH_CHARACTERS, BATCH_TEXTS, padded

FIELDS = ("question", "answer")
STOP = ["Question:", "</s>", "<|im_end|>"]  # texts at which the harness ends an answer

MOST_DRAWS = 100


def asked(question):
    return f"Question: {question}\nAnswer:"


class Shots:
    """The worked examples: for each question, records drawn from a file."""

    def __init__(self, args, finder, out, spool):
        self.count, self.random = args.shots, random.Random(args.shots_seed)
        self.found, self.reader, self.file = [], None, args.shots_from
        if not args.shots:
            return
        own = copy.copy(args)
        own.inputs, own.seed = [args.shots_from], None
        theirs = sources.Finder(own, out, spool)
        self.found = theirs.find()
        self.among = bool(theirs.seen.keys() & finder.seen.keys())  # the questions are there, too
        self.reader = documents.Reader(self.found, own)
        self.places = list(self.reader.order())
        if len(self.places) < args.shots + self.among:
            raise self._too_few(f"it has {len(self.places)} records")

    def before(self, question, answer):
        """The examples of the next question, which is never among them."""
        if not self.count:
            return ""
        pairs = self._drawn(self.count + self.among)
        for _ in range(MOST_DRAWS):
            others = [pair for pair in pairs if pair != (question, answer)]
            pairs = (others if self.among else pairs)[: self.count]
            if len(pairs) == self.count:
                return "".join(f"{asked(q)} {a}\n\n" for q, a in pairs)
            pairs = self._drawn(self.count + 1)
        raise self._too_few(f"nearly all of its records are the question {question[:40]!r}")

    def _too_few(self, why):
        return Stop(
            BAD_CONTENT,
            f"too few examples in '{self.file}'",
            f"{why}; --shots {self.count} are drawn for each question, never the question itself",
            "give a larger file with --shots-from, or a smaller --shots",
        )

    def _drawn(self, count):
        picked = self.random.sample(range(len(self.places)), count)
        return [pair_of(*self.reader.record(*self.places[i])) for i in picked]

    def close(self):
        if self.reader is not None:
            self.reader.close()


def pair_of(record, place):
    return tuple(value_of(record, field, place, numbers=True) for field in FIELDS)


def batches(reader, shots, counts):
    """[(prompt, answer)] worth one call of the tokenizer."""
    batch, size = [], 0
    for question, answer in reader.each(pair_of):
        counts.documents += 1
        examples = shots.before(question, answer)
        if not question.strip() or not answer.strip():
            counts.empty += 1
            continue
        batch.append((examples + asked(question), answer))
        size += len(batch[-1][0])
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def units(reader, coder, args, counts, shots):
    """A prompt a row, without its answer, which is kept as text."""
    width = args.sequence_tokens
    for batch in batches(reader, shots, counts):
        encodings = coder.encode([prompt for prompt, _ in batch], offsets=False)
        for (prompt, answer), encoding in zip(batch, encodings):
            coder.check_ids(encoding.ids, f"it occurs in a prompt that begins with {prompt[:40]!r}")
            ids = coder.prefix + encoding.ids + coder.suffix
            if len(ids) > width and args.overlong == "drop":
                counts.overlong += 1
                continue
            counts.truncated += len(ids) > width
            yield [{**padded(ids[-width:], None, coder, width), "answer": answer}]
