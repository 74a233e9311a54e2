"""Documents: their text as it lies in the sources, and what of it counts in the loss."""

import codecs
import json
import random

from espalier_launch.stop import BAD_CONTENT, Stop, printable, stop_of

from . import sources as _sources


class Literal(str):
    """A number of a record as it was written."""


class NoNumber(str):
    """NaN or Infinity, which JSON does not know and many programs write."""


class Damaged:
    """Records that were skipped because something in them is wrong."""

    def __init__(self):
        self.count, self.names = 0, []

    def add(self, stop):
        self.count += 1
        if len(self.names) < _sources.MOST_NAMES:
            self.names.append(printable(f"{stop.what} ({stop.why})"))

    def note(self):
        if not self.count:
            return None
        records = (
            "1 damaged record was" if self.count == 1 else f"{self.count:,} damaged records were"
        )
        return f"{records} skipped; the first: {self.names[0]}"

    def report(self):
        """Lines for the summary."""
        if not self.count:
            return []
        lines = [f"skipped as damaged {self.count:,}:", *(f"  {name}" for name in self.names)]
        if self.count > len(self.names):
            lines.append(f"  and {self.count - len(self.names):,} more")
        return lines


class Reader:
    """Documents over all sources; keeps one file open and counts the bytes it has read. Records with
    something wrong in them end the program, or are put into `damaged` where there is one."""

    def __init__(self, sources, args, damaged=None):
        self.damaged = damaged
        self.sources, self.args, self.file, self.opened = sources, args, None, None
        self.bytes = sum(sum(s.sizes) for s in sources)
        self.done = 0

    def order(self):
        """(source, number of the document) in the order of work."""
        pairs = ((s, d) for s, source in enumerate(self.sources) for d in range(len(source.starts)))
        if self.args.seed is None:
            return pairs
        pairs = list(pairs)
        random.Random(self.args.seed).shuffle(pairs)
        return pairs

    def documents(self):
        """(chunks of text, [(begin, end)] of what counts in the loss) of each document in order."""
        for index, number in self.order():
            if not self.sources[index].lines:
                yield self._chunks(index, number), []
                continue
            for text, spans in self._made(self._text, index, number):
                yield (text,), spans

    def each(self, make):
        """make(fields, place) of each record in order."""
        for index, number in self.order():
            yield from self._made(make, index, number)

    def _made(self, make, index, number):
        """[what is made of a record], or [] of one that is skipped."""
        try:
            return [make(*self.record(index, number))]
        except Stop as stop:
            if self.damaged is None or stop.code != BAD_CONTENT or not stop.of_record:
                raise
            self.damaged.add(stop)
            return []

    def record(self, index, number):
        source = self.sources[index]
        place = f"{source.path}:{source.numbers[number]}"
        return parse("".join(self._chunks(index, number)), place), place

    def _chunks(self, index, number):
        """The text of a document as it lies in the file, CHUNK_BYTES at a time."""
        source = self.sources[index]
        place = f"{source.path}:{source.numbers[number]}" if source.lines else source.path
        left, rest, offset = source.sizes[number], b"", 0
        while left:
            count = min(left, _sources.CHUNK_BYTES)
            raw = rest + self._bytes(index, source.starts[number] + offset, count)
            left -= count
            text, used = decode(raw, offset - len(rest), not left, place)
            if not source.lines and "\0" in text:
                raise zero_byte(raw.index(0) + offset - len(rest), place)
            offset += count
            rest = raw[used:]
            yield text

    def _bytes(self, index, start, count):
        source = self.sources[index]
        try:
            if self.opened != index:
                self.close()
                self.file, self.opened = source.open(), index
            self.file.seek(start)
            raw = self.file.read(count)
        except OSError as error:
            raise stop_of(error, source.path)
        if len(raw) != count:
            raise _sources.changed(
                source.path, f"{count} bytes were expected at {start}, {len(raw)} came"
            )
        self.done += count
        return raw

    def _text(self, record, place):
        if self.args.conversations is not None:
            return self.args.conversations.text(record, place)
        if self.args.parts is None:
            return value_of(record, self.args.field, place), []
        text, spans = "", []
        for literal, field in self.args.parts:
            text += literal
            if field is not None:
                begin = len(text)
                text += value_of(record, field, place, numbers=True)
                if field in self.args.loss_on:
                    spans.append((begin, len(text)))
        return text, spans

    def close(self):
        if self.file is not None and self.sources[self.opened].spool is None:
            self.file.close()
        self.file = self.opened = None


def read_json(text):
    """What JSON text says, with numbers as they are written."""
    return json.loads(text, parse_int=Literal, parse_float=Literal, parse_constant=NoNumber)


def parse(text, place):
    """The record that a line or a part of a JSON file holds."""
    try:
        record = read_json(text)
    except (ValueError, RecursionError) as error:
        raise Stop(
            BAD_CONTENT,
            f"{place}: the line is no JSON",
            str(error),
            "write one JSON object a line",
        )
    if not isinstance(record, dict):
        raise Stop(
            BAD_CONTENT,
            f"{place}: the line is no JSON object",
            f"it is {name_of(record)}",
            'write lines like {"text": "..."}',
        )
    return record


def decode(raw, offset, final, place):
    """(text, bytes used) of UTF-8 that begins `offset` bytes into a document."""
    try:
        text, used = codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        raise Stop(
            BAD_CONTENT,
            f"{place}: not UTF-8",
            f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} of the document",
            "convert it (iconv -t utf-8) or take it out of the input",
        )
    return (text[1:] if offset == 0 and text.startswith("\ufeff") else text), used


def zero_byte(offset, place):
    return Stop(
        BAD_CONTENT,
        f"{place}: not text",
        f"a zero byte at offset {offset}: a binary file, or UTF-16",
        "convert it (iconv -f utf-16 -t utf-8) or take it out of the input",
    )


def name_of(value):
    """What a JSON value is, in JSON's words."""
    if isinstance(value, NoNumber):
        return str(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "an array", Literal: "a number", str: "a string"}
    return names[type(value)]


def value_of(record, field, place, numbers=False):
    """The text of a field; with `numbers` a number counts as the text that it was written as."""
    if field not in record:
        raise Stop(
            BAD_CONTENT,
            f"{place}: no field '{field}'",
            f"the line has: {', '.join(record) or 'nothing'}",
            "name the right field with --field or --template",
        )
    return plain_text(record[field], f"field '{field}'", place, numbers)


def plain_text(value, what, place, numbers=False):
    if type(value) is not str and not (numbers and type(value) is Literal):
        raise Stop(
            BAD_CONTENT,
            f"{place}: {what} is no text",
            f"it is {name_of(value)}",
            "give a string" + (" or a number" if numbers else ""),
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Stop(
            BAD_CONTENT,
            f"{place}: {what} holds half a surrogate pair",
            "it cannot be written as UTF-8",
            "repair the line",
        )
    return str(value)
