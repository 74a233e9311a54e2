"""Inputs in proportions: which part of the rows comes from where, and in which order."""

import copy
import sys
from fractions import Fraction

from espalier_launch.stop import BAD_CONTENT, USAGE, Stop, printable


class Part:
    """One --mix: its weight, its path, and its layout where that is told."""

    def __init__(self, text, layouts):
        head, colon, self.path = text.partition(":")
        weight, comma, self.layout = head.partition(",")
        try:
            self.weight = Fraction(weight)
        except (ValueError, ZeroDivisionError):
            self.weight = Fraction(0)
        if not colon or not self.path or self.weight <= 0 or (comma and self.layout not in layouts):
            raise Stop(
                USAGE,
                f"--mix {text} is wrong",
                "it is a weight above 0, perhaps a comma and a layout, a colon and a path",
                f"for example --mix 1:web.jsonl or --mix 0.5,arc:arc.jsonl; layouts: {', '.join(layouts)}",
            )

    def arguments(self, args):
        """The arguments of the program for this part alone."""
        own = copy.copy(args)
        own.inputs, own.layout = [self.path], self.layout or args.layout
        return own


def shares(parts, tokens):
    """Tokens of each part: whole, together at most `tokens`."""
    total = sum(part.weight for part in parts)
    return [int(tokens * part.weight / total) for part in parts]


class Stream:
    """The units of one input while they are written: at most `quota` tokens of them."""

    def __init__(self, name, reader, units, quota=sys.maxsize):
        self.name, self.reader, self.units, self.quota = name, reader, units, quota
        self.tokens = self.rows = 0
        self.ran_out = False

    def next(self):
        """(unit, its tokens), or None at the end: of the input, or of what there is room for."""
        if self.tokens >= self.quota:
            return None
        unit = next(self.units, None)
        if unit is None:
            self.ran_out = True
            return None
        size = sum(row["length"] for row in unit)
        return (unit, size) if self.tokens + size <= self.quota else None

    def take(self, unit, size):
        self.rows += len(unit)
        self.tokens += size

    def limited(self):
        return self.quota < sys.maxsize

    def note(self):
        """What has to be said about a quota that was not reached, or None."""
        name, share = printable(self.name), f"{self.quota:,} token{'s' if self.quota > 1 else ''}"
        if not self.limited() or (self.rows and not self.ran_out):
            return None
        if self.ran_out:
            return f"{name} ran out at {self.tokens:,} of {share}"
        return f"{name} has no row: the first has more than its {share}"

    def report(self):
        return f"  {self.tokens:,} of {self.quota:,} tokens, {self.rows:,} rows: {printable(self.name)}"


def merged(streams):
    """(stream, unit, size) in the order of writing: next is always the stream that has least of its
    quota, so that every begin of the file has about the proportions of the whole."""
    waiting = list(streams)
    while waiting:
        stream = min(waiting, key=lambda s: s.tokens / s.quota)
        found = stream.next()
        if found is None:
            waiting.remove(stream)
        else:
            yield stream, *found


def require_input(part, found):
    if not found:
        raise Stop(
            BAD_CONTENT,
            f"--mix {part.path} has nothing to read",
            "it is empty, or another --mix has read it already",
            "name each input once",
        )
