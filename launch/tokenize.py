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

import argparse  # noqa: E402
import datetime  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402

from espalier_tokens import (
    chat,
    choices,
    documents,
    items,
    mix,
    output,
    pieces,
    prompts,
    rows,
    sources,
    stop,
    template,
)  # noqa: E402
from espalier_tokens.coder import MOST_IDS, Coder  # noqa: E402
from espalier_tokens.stop import Stop  # noqa: E402

MOST_ROW = 1 << 24
EXAMPLES = """\
examples:
  # plain text, packed into full rows of 2048 tokens
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 2048 --out data/web.h5 corpus/

  # questions with answers, one a row; only the answer's tokens count in the loss
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 512 --out data/math.h5 \\
      --template "{question}\\n{answer}" --loss-on answer --max-sequences 1000 --seed 1 train.jsonl

  # conversations as the model's own chat template writes them
  launch/tokenize.py --tokenizer models/Qwen2.5-7B-Instruct --sequence-tokens 2048 --out data/chat.h5 \\
      --chat --seed 1 conversations.jsonl

  # multiple choice, each option a row, prompts as lm-evaluation-harness has them
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 512 --out data/arc.h5 \\
      --task multiple_choice arc_easy.test.jsonl

  # two inputs in one file, three quarters and one quarter of 512,000 tokens
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 2048 --out data/both.h5 \\
      --mix 3:web.jsonl --mix 1:code/ --tokens 512000 --seed 1

  # questions to answer, after five examples each
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 2048 --out data/gsm8k.h5 \\
      --task exact_match --shots-from gsm8k/train.jsonl gsm8k/test.jsonl

input that is read, by its ending:
  .txt, .md, source code, ...     text: the file is a document
  .jsonl .ndjson .jsonlines       one JSON object a line is a document: its --field, or --template
  .json                           an array of such objects, or objects behind one another; in a
                                  directory only files whose first object has the fields
  .parquet .pq                    each row is such an object
  .gz .bz2 .xz .zst behind these  the same, compressed (not Parquet, which is so inside)
  pipes and other names           jsonl where the first line is a JSON object, else text, unless
                                  --input-format tells; e.g. <(unzip -p corpus.zip)
Directories are searched through, links followed; what is passed over (hidden, other endings, empty,
met before) is counted and named at the end. What is not text (NaN, null, lists, bytes that are no
UTF-8) ends the program with file and line; numbers fill a template as they are written.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Stop(
            stop.USAGE, "the command line is wrong", message, "see launch/tokenize.py --help"
        )


def integer(least, most):
    """The type of a flag that takes an integer of a range."""

    def convert(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} (it must be at least {least})")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} (it must be at most {most})")
        return value

    convert.__name__ = "integer"  # argparse says "invalid integer value"
    return convert


def date(text):
    return datetime.datetime.strptime(text, "%Y-%m-%d")


def make_parser():
    parser = Parser(
        prog="launch/tokenize.py",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, pipes, or directories (searched through, in the order of names)",
    )
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        metavar="WEIGHT:PATH",
        help="instead of INPUT, repeated: inputs by weight; each gets its share of --tokens, and "
        "their rows take turns. WEIGHT,LAYOUT:PATH tells the layout of one",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.json, or a model directory that has one",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    parser.add_argument(
        "--sequence-tokens",
        required=True,
        type=integer(1, MOST_ROW),
        metavar="S",
        help="tokens of a row",
    )
    parser.add_argument(
        "--task",
        choices=("text", "multiple_choice", "exact_match"),
        default="text",
        help="what the rows are for: text to predict (default), items with options of which one is "
        "right, or questions that the model answers in its own words",
    )
    parser.add_argument(
        "--layout",
        choices=choices.NAMES,
        default="auto",
        help="multiple choice: the data set whose fields and prompt the records have "
        "(default: by their fields)",
    )
    parser.add_argument(
        "--gisp-as-released",
        action="store_true",
        help="multiple choice: two faults of GISP's released code: context and answer encoded each "
        "alone, without the space between; WinoGrande's first option always counts as right",
    )
    parser.add_argument(
        "--shots",
        type=integer(0, 1000),
        metavar="N",
        help="exact match: worked examples before each question (default: 5)",
    )
    parser.add_argument(
        "--shots-from", metavar="FILE", help="exact match: questions with answers to draw them from"
    )
    parser.add_argument(
        "--shots-seed",
        type=integer(0, sys.maxsize),
        metavar="K",
        help="exact match: how they are drawn (default: 1234, as lm-evaluation-harness draws)",
    )
    parser.add_argument(
        "--input-format",
        choices=("auto", "text", "jsonl", "json", "parquet"),
        default="auto",
        help="how to read the named files and pipes (default: by their endings, see below)",
    )
    parser.add_argument(
        "--field", default="text", help="field of a jsonl line that holds its text (default: text)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help=r'text of a jsonl line from its fields, e.g. "{question}\n{answer}"; \n, \t, \\ are '
        "understood, {{ and }} are braces. One sequence a row",
    )
    parser.add_argument(
        "--loss-on",
        metavar="FIELD",
        action="append",
        default=[],
        help="only the tokens of this field of the template count in the loss (may be repeated)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="text of a record: its conversation (messages, or question and answer) as the model's "
        "own chat template writes it; what the assistant says counts in the loss. One sequence a row",
    )
    parser.add_argument(
        "--chat-date",
        type=date,
        metavar="YYYY-MM-DD",
        help="chat: what templates that write the date take for today",
    )
    parser.add_argument(
        "--pack",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fill rows with one document after another (default without --template), "
        "or give each document a row of its own",
    )
    parser.add_argument(
        "--keep-rest",
        action="store_true",
        help="packing: keep the last, unfilled row (it gets a length); otherwise it is dropped",
    )
    parser.add_argument(
        "--overlong",
        choices=("drop", "truncate"),
        default="drop",
        help="one document a row: what happens to those longer than S (default: drop; an item of "
        "options falls whole). Options are truncated from the left",
    )
    parser.add_argument(
        "--bos",
        default="auto",
        metavar="auto|none|TOKEN",
        help="before each document; auto: what the tokenizer itself puts there",
    )
    parser.add_argument(
        "--eos",
        default="auto",
        metavar="auto|none|TOKEN",
        help="behind each document; auto: packing: the end-of-document token, "
        "else what the tokenizer itself puts there",
    )
    parser.add_argument(
        "--max-sequences", type=integer(1, sys.maxsize), metavar="N", help="stop after N rows"
    )
    parser.add_argument(
        "--tokens",
        type=integer(2, sys.maxsize),
        metavar="T",
        help="stop before the row (or the item of options) that would make it more than T tokens",
    )
    parser.add_argument(
        "--seed",
        type=integer(0, sys.maxsize),
        metavar="K",
        help="shuffle the documents (default: keep their order)",
    )
    parser.add_argument(
        "--vocab-size",
        type=integer(1, MOST_IDS),
        metavar="V",
        help="vocabulary of the model (default: from config.json beside the tokenizer, "
        "else the tokenizer's own)",
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out records with something wrong in them, and count them; otherwise the first "
        "one ends the program",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return parser


def require_text(name, value):
    """Words of the command line go into the file's attributes and to the tokenizer."""
    try:
        (value or "").encode("utf-8")
    except UnicodeEncodeError:
        raise Stop(
            stop.USAGE,
            f"--{name} is not UTF-8",
            f"it reads {value!r}",
            "write it in a terminal that speaks UTF-8",
        )


def exclude(args, names, what, why):
    """Stops where one of the flags is given that a task leaves no room for."""
    for name in names:
        if getattr(args, name) not in (None, False, [], "text"):
            flag = f"--{name.replace('_', '-')}"
            raise Stop(stop.USAGE, f"{flag} and {what} exclude one another", why, f"drop {flag}")


def settle_choices(args):
    exclude(
        args,
        ("template", "loss_on", "pack", "keep_rest", "field"),
        "--task multiple_choice",
        "an option is a row, and its layout says which fields make it",
    )
    args.units, args.wanted = "items", "the fields of an item"
    args.only_fields = None
    args.fits = lambda record: choices.layout_of(record, args.layout) is not None


def settle_prompts(args):
    exclude(
        args,
        ("template", "loss_on", "pack", "keep_rest", "field"),
        "--task exact_match",
        "a question is a row, and its fields are question and answer",
    )
    args.shots = 5 if args.shots is None else args.shots
    args.shots_seed = 1234 if args.shots_seed is None else args.shots_seed
    if bool(args.shots) != bool(args.shots_from):
        raise Stop(
            stop.USAGE,
            f"--shots {args.shots} {'needs' if args.shots else 'has no use for'} --shots-from",
            "worked examples are drawn from a file of questions with answers",
            "give --shots-from FILE, or --shots 0 without it",
        )
    args.units, args.wanted = "questions", " and ".join(prompts.FIELDS)
    args.only_fields = set(prompts.FIELDS)
    args.fits = lambda record: set(prompts.FIELDS) <= record.keys()


def settle_chat(args):
    exclude(
        args,
        ("template", "loss_on", "pack", "keep_rest", "field"),
        "--chat",
        "a conversation is a row, and the model's template writes it",
    )
    args.pack, args.units, args.wanted = False, "conversations", "a conversation"
    args.only_fields, args.fits = None, chat.is_conversation


def settle_text(args):
    fields = {field for _, field in args.parts if field} if args.parts else {args.field}
    args.only_fields = fields
    args.units, args.wanted = "documents", ", ".join(sorted(fields))
    args.fits = lambda record: fields <= record.keys()


def settle_task(args):
    """What --task means for other flags, and which records it reads."""
    for name, task, value in (
        ("layout", "multiple_choice", args.layout != "auto"),
        ("gisp-as-released", "multiple_choice", args.gisp_as_released),
        ("shots", "exact_match", args.shots is not None),
        ("shots-from", "exact_match", args.shots_from),
        ("shots-seed", "exact_match", args.shots_seed is not None),
    ):
        if value and args.task != task:
            raise Stop(
                stop.USAGE,
                f"--{name} needs --task {task}",
                f"with --task {args.task} it means nothing",
                f"add it, or drop --{name}",
            )
    if args.chat_date and not args.chat:
        raise Stop(
            stop.USAGE,
            "--chat-date needs --chat",
            "only a chat template asks for the date",
            "add it, or drop --chat-date",
        )
    args.conversations = None  # made when the tokenizer is there
    args.masked = args.task == "multiple_choice" or bool(args.loss_on) or args.chat
    if args.task == "text":
        args.wants_fields = "--chat" if args.chat else "--template" if args.parts else ""
        (settle_chat if args.chat else settle_text)(args)
        return
    exclude(args, ("chat",), f"--task {args.task}", "its prompts are its own")
    args.wants_fields = f"--task {args.task}"
    (settle_choices if args.task == "multiple_choice" else settle_prompts)(args)
    args.pack = False


def settle_inputs(args):
    if bool(args.inputs) == bool(args.mix):
        raise Stop(
            stop.USAGE,
            "no INPUT is given" if not args.inputs else "--mix and INPUT exclude one another",
            "what is to be read is named, or mixed by weight",
            "name files or directories, or give --mix WEIGHT:PATH for each",
        )
    if args.mix and args.tokens is None:
        raise Stop(
            stop.USAGE,
            "--mix needs --tokens",
            "weights divide the tokens of the file",
            "add for example --tokens 512000",
        )
    args.mix = [mix.Part(text, choices.NAMES) for text in args.mix]
    if args.task != "multiple_choice" and any(part.layout for part in args.mix):
        raise Stop(
            stop.USAGE,
            "a layout in --mix needs --task multiple_choice",
            "only items of options have one",
            "add it, or write --mix WEIGHT:PATH",
        )


def settle(args):
    """Checks what flags mean together and fills in what depends on others."""
    for name in ("template", "field", "bos", "eos"):
        require_text(name, getattr(args, name))
    if args.loss_on and not args.template:
        raise Stop(
            stop.USAGE,
            "--loss-on needs --template",
            "without a template a document has no fields",
            'add for example --template "{question}\\n{answer}"',
        )
    if args.loss_on and args.pack:
        raise Stop(
            stop.USAGE,
            "--pack and --loss-on exclude one another",
            "a row with a loss mask holds one sequence",
            "drop one of the two",
        )
    args.parts = template.parse_template(args.template, args.loss_on) if args.template else None
    settle_task(args)
    settle_inputs(args)
    args.pack = args.pack if args.pack is not None else args.template is None
    if args.keep_rest and not args.pack:
        raise Stop(
            stop.USAGE,
            "--keep-rest needs packing",
            "with one document a row there is no rest",
            "drop --keep-rest",
        )
    if args.sequence_tokens < 2:
        raise Stop(
            stop.USAGE,
            "--sequence-tokens 1 is too short",
            "the first token of a row is never predicted",
            "use at least 2",
        )
    return args


def datasets_of(args):
    """Names of the datasets that the rows fill."""
    names = ["tokens"]
    if not args.pack or args.keep_rest:
        names.append("length")
    if args.masked:
        names.append("loss_mask")
    if args.task == "multiple_choice":
        names += ["item", "option", "correct", "normalizer"]
    if args.task == "exact_match":
        names.append("answer")
    return names


def tables_of(args, coder):
    """Datasets that do not grow with the rows."""
    import numpy

    if args.task != "exact_match":
        return {}
    joined, ends = pieces.pieces(coder)
    return {
        "piece_bytes": numpy.frombuffer(joined, dtype="u1"),
        "piece_ends": numpy.asarray(ends, dtype="<i8"),
    }


def task_attributes(args, coder, shots):
    import numpy

    if args.chat:
        return {
            "chat_template_sha256": args.conversations.sha256,
            "chat_date": args.conversations.date.strftime("%Y-%m-%d"),
        }
    if args.task == "text":
        return {}
    if args.task == "multiple_choice":
        released = {"gisp_as_released": 1} if args.gisp_as_released else {}
        return {"task": args.task, "layout": args.layout, **released}
    return {
        "task": args.task,
        "stop": json.dumps(prompts.STOP),
        "eos_ids": numpy.asarray(coder.ends(), dtype="<i4"),
        "shots": args.shots,
        "shots_seed": args.shots_seed,
        "shots_sources": sources.provenance(shots.found),
    }


def summary(args, out, counts, streams, left, seconds):
    parts = [f"{out.rows:,} rows of {args.sequence_tokens}, {counts.tokens:,} tokens"]
    if args.masked:
        parts.append(f"{counts.counted:,} count in the loss")
    number = counts.documents if args.task == "text" else counts.units
    parts.append(f"{number:,} {args.units}")
    for number, words in (
        (counts.overlong, "overlong dropped"),
        (counts.truncated, "truncated"),
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
    return "\n".join((f"{stop.printable(args.out)}: {first}", *shares, *(line for part in left for line in part.report())))


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


def mixture_of(args):
    return [
        {
            "weight": str(part.weight),
            "path": sources.plain_path(part.path),
            "layout": part.layout or args.layout,
            "tokens": share,
        }
        for part, share in zip(args.mix, mix.shares(args.mix, args.tokens))
    ]


def attributes_of(args, coder, finder, version):
    return {
        "format": "espalier-tokens",
        "version": 1,
        "vocab_size": coder.vocab_size,
        "tokenizer_sha256": coder.sha256,
        "source_sha256": sources.source_digest(finder.found),
        "template": template.unescape(args.template) if args.template else "",
        "sources": sources.provenance(finder.found),
        "passed_over": finder.passed.count,
        "mix": json.dumps(mixture_of(args), ensure_ascii=False) if args.mix else "",
        "token_limit": args.tokens or -1,
        "seed": -1 if args.seed is None else args.seed,
        "loss_on": ",".join(args.loss_on),
        "packed": int(args.pack),
        "tokenizers_version": version,
    }


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
        return [(name, documents.Reader(finder.find(), args, damaged), args, args.tokens or sys.maxsize)]
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
            datasets_of(args),
            {
                **attributes_of(args, coder, finder, version),
                **task_attributes(args, coder, shots),
            },
            tables_of(args, coder),
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
        raise Stop(
            stop.UNAVAILABLE,
            "a Python package is missing",
            str(error),
            "run launch/setup.sh and use .venv/bin/python",
        )
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
        say(summary(args, out, counts, streams, left, time.monotonic() - begin), args)


def say(text, args):
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Python would try again to write what is left of it when it ends.
        sys.stdout = open(os.devnull, "w")
        raise Stop(
            stop.WRITE_FAILED,
            "the summary could not be printed",
            error.strerror,
            f"nothing: '{args.out}' is complete",
        )


def interrupted(number, _frame):
    raise KeyboardInterrupt(number)


def main(argv=None):
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupted)
    out = None
    try:
        args = settle(make_parser().parse_args(argv))
        out = output.TokenFile(args.out, args.force)
        run(args, out)
    except Stop as problem:
        print(problem.block(), file=sys.stderr)
        return problem.code
    except KeyboardInterrupt as interrupt:
        left = f"'{out.path}' is complete" if out and out.complete else "nothing was written"
        print(f"tokenize: interrupted, {stop.printable(left)}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except Exception as error:
        traceback.print_exc()
        bug = Stop(
            stop.BUG,
            "this is a bug",
            f"{type(error).__name__}: {error}",
            "please report it with the lines above and the command",
        )
        print(bug.block(), file=sys.stderr)
        return stop.BUG
    return 0


if __name__ == "__main__":
    sys.exit(main())
