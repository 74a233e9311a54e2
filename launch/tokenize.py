#!/usr/bin/env python3
"""Turns text into the token files that espalier reads (HDF5; docs/file-formats.md).

Streams: documents are read, encoded and written in batches; nothing but an index of where each
document begins is held for the whole input. What can be read only once (pipes) or only from its
begin (compressed files) is kept in a nameless file beside the output meanwhile. The output appears
under its name only when complete.
"""

import os
import sys

# This file bears the name of a module of the standard library, which others import: our own folder
# must not be a place where Python looks.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _HERE]
sys.path.insert(0, os.path.join(_HERE, "python"))

import time  # noqa: E402

from espalier_launch import program, stop  # noqa: E402
from espalier_launch.stop import Stop  # noqa: E402
from espalier_tokens import (  # noqa: E402
    chat,
    contents,
    documents,
    items,
    mix,
    output,
    prompts,
    rows,
    sources,
)
from espalier_tokens.arguments import make_parser, settle  # noqa: E402
from espalier_tokens.coder import Coder  # noqa: E402


def summary(args, out, counts, streams, left, seconds):
    parts = [f"{out.rows:,} rows of {args.sequence_tokens}, {counts.tokens:,} tokens"]
    if args.masked:
        parts.append(f"{counts.counted:,} count in the loss")
    number = counts.documents if args.task == "text" else counts.units
    parts.append(f"{number:,} {args.units}")
    for number, words in (
        (counts.overlong, "overlong dropped"),
        (counts.truncated, "truncated"),
        (counts.short, "too short for --window dropped"),
        (counts.empty, "empty skipped"),
        (counts.unlearned, "without a token to predict skipped"),
        (counts.rest, "tokens of rest dropped"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    if counts.limited:
        parts.append("stopped at --max-sequences")
    elif args.tokens and not any(stream.ran_out for stream in streams):
        parts.append("stopped at --tokens")
    rate = counts.tokens / max(seconds, 1e-9)
    first = f"{', '.join(parts)}; {seconds:.1f} s, {rate:,.0f} tokens/s"
    shares = [stream.report() for stream in streams] if args.mix else []
    return "\n".join(
        (
            f"{stop.printable(args.out)}: {first}",
            *shares,
            *(line for part in left for line in part.report()),
        )
    )


def check_output(args, out):
    folder = out.folder
    if os.path.exists(args.out) and not os.path.isfile(args.out):
        raise Stop(
            stop.CANNOT_CREATE,
            f"'{args.out}' exists",
            "it is no regular file",
            "choose another path with --out",
        )
    if os.path.lexists(args.out) and not args.force:
        raise Stop(
            stop.CANNOT_CREATE,
            f"'{args.out}' exists",
            "a token file is not replaced unasked",
            "choose another path with --out, or give --force",
        )
    if not os.path.isdir(folder):
        raise Stop(
            stop.CANNOT_CREATE,
            f"cannot create '{args.out}'",
            f"the directory '{folder}' does not exist",
            f"mkdir -p '{folder}'",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Stop(
            stop.NO_PERMISSION,
            f"cannot create '{args.out}'",
            f"the directory '{folder}' may not be written to",
            "choose another place with --out",
        )


def least_bytes(args, size):
    """Bytes that the rows of an input of this size take even if a token stood for 8 bytes of text;
    0: nobody knows."""
    if not args.pack:
        return 0
    limit = (args.max_sequences or sys.maxsize) * args.sequence_tokens * 4
    return min(size // 2, limit, (args.tokens or sys.maxsize) * 4)


def note_long_rows(args, coder):
    longest, source = coder.longest_row()
    if longest is not None and args.sequence_tokens > longest:
        print(
            f"tokenize: note: rows of {args.sequence_tokens} tokens are longer than the model's "
            f"{longest} positions ({stop.printable(source)})",
            file=sys.stderr,
        )


def units_of(args, reader, coder, counts, shots):
    """What is written whole or not at all."""
    if args.task == "exact_match":
        return prompts.units(reader, coder, args, counts, shots)
    make_units = items.units if args.task == "multiple_choice" else rows.units_of_text
    return make_units(reader, coder, args, counts)


def readers_of(args, finder, damaged):
    """(name, reader, arguments, quota) of each input that is read on its own."""
    if not args.mix:
        name = args.inputs[0] + (f" and {len(args.inputs) - 1} more" if args.inputs[1:] else "")
        return [
            (name, documents.Reader(finder.find(), args, damaged), args, args.tokens or sys.maxsize)
        ]
    readers = []
    for part, quota in zip(args.mix, mix.shares(args.mix, args.tokens)):
        found, own = finder.find([part.path]), part.arguments(args)
        mix.require_input(part, found)
        readers.append((part.path, documents.Reader(found, own, damaged), own, max(1, quota)))
    return readers


def streams_of(args, readers, coder, counts, shots):
    return [
        mix.Stream(name, reader, units_of(own, reader, coder, counts, shots), quota)
        for name, reader, own, quota in readers
    ]


def make(args, coder, version, out, progress_of):
    """Reads, encodes and writes; (counts, streams, [what was passed over, what was skipped])."""
    counts, spool = rows.Counts(), sources.Spool(out.folder)
    damaged = documents.Damaged() if args.skip_damaged else None
    readers, progress, shots = [], None, None
    try:
        out.create()
        finder = sources.Finder(args, out, spool)
        readers = readers_of(args, finder, damaged)
        size = sum(reader.bytes for _, reader, _, _ in readers)
        out.require_space(least_bytes(args, size))
        progress = progress_of(size)
        if args.task == "exact_match":
            shots = prompts.Shots(args, finder, out, spool)
        out.open(
            args.sequence_tokens,
            contents.datasets_of(args),
            {
                **contents.attributes_of(args, coder, finder, version),
                **contents.task_attributes(args, coder, shots),
            },
            contents.tables_of(args, coder),
        )
        streams = streams_of(args, readers, coder, counts, shots)
        rows.write_rows(streams, out, args, counts, progress)
        if out.rows == 0:
            raise rows.no_rows(args, counts, streams, finder.passed, damaged)
        out.finish()
    except OSError as error:
        raise stop.stop_of(error, args.out, writing=True)
    finally:
        for part in (progress, *(reader for _, reader, _, _ in readers), shots, spool, out):
            if part is not None:
                part.close()
    return counts, streams, [left for left in (finder.passed, damaged) if left is not None]


def run(args, out):
    begin = time.monotonic()
    check_output(args, out)
    try:
        import h5py  # noqa: F401
        import numpy  # noqa: F401
        import tokenizers
    except ImportError as error:
        raise stop.missing_package("a Python package is missing", error)
    bos = "none" if args.chat and args.bos == "auto" else args.bos  # the template writes it
    open_end = args.chat or args.task != "text"
    coder = Coder(args.tokenizer, bos, args.eos, args.pack, args.vocab_size, open_end)
    if args.chat:
        args.conversations = chat.Conversations(coder, args.chat_date or chat.today())
    note_long_rows(args, coder)
    counts, streams, left = make(
        args, coder, tokenizers.__version__, out, lambda total: output.Progress(total, args.quiet)
    )
    for note in filter(None, (part.note() for part in (*streams, *left))):
        print(f"tokenize: note: {note}", file=sys.stderr)
    if not args.quiet:
        seconds = time.monotonic() - begin
        program.say(summary(args, out, counts, streams, left, seconds), args.out)


def main(argv=None):
    files = []

    def work():
        args = settle(make_parser().parse_args(argv))
        files.append(output.TokenFile(args.out, args.force))
        run(args, files[0])

    def left():
        done = [f"'{file.path}' is complete" for file in files if file.complete]
        return done[0] if done else "nothing was written"

    return program.finish("tokenize", work, left)


if __name__ == "__main__":
    sys.exit(main())
