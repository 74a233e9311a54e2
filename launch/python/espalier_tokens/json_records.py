"""Where the records of a JSON file lie: one array of objects, or objects behind one another."""

import re

from espalier_launch.stop import BAD_CONTENT, Stop

MARK = re.compile(rb'["{}\[\]]')
IN_STRING = re.compile(rb'["\\]')
NOT_BLANK = re.compile(rb"[^ \t\r\n]")
BOM = b"\xef\xbb\xbf"


class JsonRecords:
    """Finds (start, size, line) of each record in blocks of bytes, without holding them.

    Only the structure between the records is judged here; a record itself is parsed when it is
    read.
    """

    def __init__(self, place):
        self.place = place
        self.offset, self.line, self.counted = 0, 1, 0  # of the block; of block[counted]
        self.depth, self.string, self.escaped = 0, False, False
        self.start = self.start_line = None
        self.base = None  # 1 inside an array, 0 for objects behind one another
        self.expected = "a record"

    def feed(self, block):
        """The records that end in this block."""
        at, self.counted = 0, 0
        if self.offset == 0 and block.startswith(BOM):
            at = len(BOM)
        while at is not None and at < len(block):
            if self.string:
                at = self._in_string(block, at)
            elif self.start is None:
                at = self._between(block, at)
            else:
                at = self._in_record(block, at)
                if at is not None and self.depth == self.base:
                    begin, self.start = self.start, None
                    self.expected = "a comma" if self.base else "a record"
                    yield begin, self.offset + at - begin, self.start_line
        self._count_lines(block, len(block))
        self.offset += len(block)

    def finish(self):
        if self.start is not None:
            raise self._wrong("the file ends in the middle of a record", self.start_line)
        if self.base and self.expected != "the end":
            raise self._wrong("the file ends before the array does", self.line)

    def _count_lines(self, block, end):
        self.line += block.count(b"\n", self.counted, end)
        self.counted = end

    def _in_string(self, block, at):
        if self.escaped:
            self.escaped = False
            return at + 1
        found = IN_STRING.search(block, at)
        if found is None:
            return None
        self.escaped = found.group() == b"\\"
        self.string = self.escaped
        return found.end()

    def _in_record(self, block, at):
        found = MARK.search(block, at)
        if found is None:
            return None
        mark = found.group()
        self.string = mark == b'"'
        if not self.string:
            self.depth += 1 if mark in b"{[" else -1
        return found.end()

    def _between(self, block, at):
        """What stands before, between and behind records: brackets of the array, commas."""
        found = NOT_BLANK.search(block, at)
        if found is None:
            return None
        at, mark = found.start(), found.group()
        self._count_lines(block, at)
        if self.base is None:
            self.base = self.depth = int(mark == b"[")
            if self.base:
                self.expected = "a record or ]"
                return at + 1
        if mark == b"]" and self.base and self.expected in ("a comma", "a record or ]"):
            self.expected = "the end"
        elif mark == b"," and self.expected == "a comma":
            self.expected = "a record"
        elif mark == b"{" and self.expected.startswith("a record"):
            self.start, self.start_line = self.offset + at, self.line
            return self._in_record(block, at)
        else:
            shown = mark.decode("ascii", "backslashreplace")
            raise self._wrong(f"{self.expected} was expected, {shown!r} came", self.line)
        return at + 1

    def _wrong(self, why, line):
        return Stop(
            BAD_CONTENT,
            f"{self.place}:{line}: no JSON records",
            why,
            "write an array of objects, or one object behind the other",
        )
