"""Rows: documents packed behind one another, or one document a row with its loss mask.

A unit is what is written whole or not at all: a row, or the rows of an item of multiple choice.
"""

import random
import sys

from espalier_launch.stop import BAD_CONTENT, Stop

from .mix import merged
from .template import unescape

PIECE_CHARACTERS = 1 << 18  # longer documents are packed in pieces, each encoded on its own
BATCH_CHARACTERS = 1 << 20  # text encoded in one call of the tokenizer
BATCH_TEXTS = 512


class Counts:
    def __init__(self):
        self.documents = self.empty = self.overlong = self.truncated = self.unlearned = 0
        self.rest = self.tokens = self.counted = self.units = self.short = 0
        self.limited = False

    def take(self, unit):
        """Counts a unit that is written."""
        self.units += 1
        for row in unit:
            self.tokens += row["length"]
            self.counted += sum(row["loss_mask"]) if "loss_mask" in row else row["length"] - 1


def cut_before(text, begin, end):
    """Where to cut text[begin:end] so that the tokens on both sides stay what they were.

    Tokenizers cut behind a line end that no white space follows and before a single space.
    """
    for mark, before in (("\n", 0), (" ", 1)):
        at = text.rfind(mark, begin + 1, end)
        while at > begin:
            if not text[at + 1].isspace() and not (before and text[at - 1].isspace()):
                return at + 1 - before
            at = text.rfind(mark, begin + 1, at)
    return end


def pieces_of(chunks):
    """(piece, is it the last) of a text that comes in chunks; a short text is one piece.

    A tokenizer that puts a mark before every text (Llama 2) puts one before every piece.
    """
    text = ""
    for chunk in chunks:
        text += chunk
        begin = 0
        while len(text) - begin > PIECE_CHARACTERS:
            end = cut_before(text, begin, begin + PIECE_CHARACTERS)
            yield text[begin:end], False
            begin = end
        text = text[begin:]
    yield text, True


def counted(reader, counts):
    for document in reader.documents():
        counts.documents += 1
        yield document


def joined(reader, between, counts):
    """All documents as one, with `between` between them."""

    def chunks():
        for number, (text, _) in enumerate(counted(reader, counts)):
            if number:
                yield between
            yield from text

    yield chunks(), []


def batches(reader, args, counts):
    """Texts worth one call of the tokenizer: [(text, spans, begins document, ends document)]."""
    batch, size, packed = [], 0, args.pack
    if args.join is None:
        documents = counted(reader, counts)
    else:
        documents = joined(reader, unescape(args.join), counts)
    for chunks, spans in documents:
        first = True
        for text, last in pieces_of(chunks) if packed else (("".join(chunks), True),):
            if first and last and not text.strip():
                counts.empty += 1
                continue
            batch.append((text, spans, first, last))
            first = False
            size += len(text)
            if size >= BATCH_CHARACTERS or len(batch) == BATCH_TEXTS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def check_ids(encoding, coder, text):
    coder.check_ids(encoding.ids, f"it occurs in a document that begins with {text[:40]!r}")


def padded(ids, mask, coder, width):
    """A row of its own; a mask of None: every token counts."""
    space = width - len(ids)
    row = {"tokens": ids + [coder.padding] * space, "length": len(ids)}
    if mask is not None:
        row["loss_mask"] = mask + [0] * space
    return row


def pack(batch, coder, width, carry, counts):
    """Appends the texts to `carry` and yields every full row."""
    encodings = coder.encode([text for text, *_ in batch], offsets=False)
    for (text, _, first, last), encoding in zip(batch, encodings):
        check_ids(encoding, coder, text)
        if first and last and not encoding.ids:
            counts.empty += 1
            continue
        carry += (coder.prefix if first else []) + encoding.ids + (coder.suffix if last else [])
        full = len(carry) // width * width
        for begin in range(0, full, width):
            yield {"tokens": carry[begin : begin + width], "length": width}
        del carry[:full]


def windows(batch, coder, width, places, counts):
    """Of each document that has more tokens a row from a place that is drawn."""
    encodings = coder.encode([text for text, *_ in batch], offsets=False)
    for (text, *_), encoding in zip(batch, encodings):
        check_ids(encoding, coder, text)
        if not encoding.ids:
            counts.empty += 1
            continue
        ids = coder.prefix + encoding.ids + coder.suffix
        if len(ids) <= width:
            counts.short += 1
            continue
        begin = places.randrange(len(ids) - width)
        yield {"tokens": ids[begin : begin + width], "length": width}


def separate(batch, coder, args, counts):
    """The documents, each padded to a row of its own."""
    width = args.sequence_tokens
    encodings = coder.encode([text for text, *_ in batch], offsets=args.masked)
    for (text, spans, *_), encoding in zip(batch, encodings):
        check_ids(encoding, coder, text)
        if not encoding.ids:
            counts.empty += 1
            continue
        ids = coder.prefix + encoding.ids + coder.suffix
        mask = None
        if args.masked:
            mask = (
                [0] * len(coder.prefix)
                + answer_mask(encoding.offsets, spans)
                + [0] * len(coder.suffix)
            )
            mask[0] = 0  # nothing comes before the first token: it is never predicted
        if len(ids) > width and args.overlong == "drop":
            counts.overlong += 1
            continue
        length = min(len(ids), width)
        if length < 2 or (mask is not None and not any(mask[:width])):
            counts.unlearned += 1
            continue
        counts.truncated += len(ids) > width
        yield padded(ids[:width], None if mask is None else mask[:width], coder, width)


def answer_mask(offsets, spans):
    """1 for each token that holds at least one character of a span.

    A merge may reach over the border of the answer: such a token cannot be predicted without
    predicting the answer's first characters, so it counts.
    """
    return [
        int(any(begin < stop and start < end for start, stop in spans)) for begin, end in offsets
    ]


def units_of_text(reader, coder, args, counts):
    carry, width = [], args.sequence_tokens
    places = random.Random(args.seed)
    for batch in batches(reader, args, counts):
        if args.pack:
            rows = pack(batch, coder, width, carry, counts)
        elif args.window:
            rows = windows(batch, coder, width, places, counts)
        else:
            rows = separate(batch, coder, args, counts)
        yield from ([row] for row in rows)
    if args.keep_rest and len(carry) > 1:
        yield [padded(carry, None, coder, width)]
    else:
        counts.rest += len(carry)


def write_rows(streams, out, args, counts, progress):
    """All units that quotas and --max-sequences leave room for."""
    limit = args.max_sequences or sys.maxsize
    for stream, unit, size in merged(streams):
        counts.limited = out.rows + len(unit) > limit
        if not counts.limited:
            for row in unit:
                out.add({**row, "item": counts.units})
            counts.take(unit)
            stream.take(unit, size)
            counts.limited = out.rows == limit
        if counts.limited:
            return
        progress.show(sum(s.reader.done for s in streams), out.rows)


def no_rows(args, counts, streams, passed, damaged):
    if counts.limited:
        why = f"the first item has more rows than --max-sequences {args.max_sequences}"
        do = "allow more rows"
    elif any(stream.limited() and not stream.ran_out for stream in streams):
        why = f"--tokens {args.tokens} is less than the first row or item has"
        do = "allow more tokens, or use a smaller --sequence-tokens"
    elif args.pack:
        why = f"the input has {counts.rest} tokens, a row needs {args.sequence_tokens}"
        do = "use a smaller --sequence-tokens, more input, or --keep-rest"
    else:
        short = f"{counts.short} too short for --window, " if args.window else ""
        why = (
            f"of {counts.documents} {args.units} {counts.overlong} were longer than "
            f"{args.sequence_tokens} tokens, "
            f"{short}{counts.empty} empty or blank, {counts.unlearned} without a token to predict"
        )
        do = "use a larger --sequence-tokens, --overlong truncate, or other input"
    if damaged is not None and damaged.count:
        why += f"; {damaged.note()}"
    return Stop(BAD_CONTENT, "no row was written", why + passed.clause(), do)
