#!/usr/bin/env python3
"""Turns text into the token files that espalier reads (HDF5; docs/file-formats.md).

Streams: documents are read, encoded and written in batches; nothing but an index of where each
document begins is held for the whole input. The output appears under its name only when complete.
"""

import os
import sys

# This file bears the name of a module of the standard library, which others import: our own folder
# must not be a place where Python looks.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _HERE]
sys.path.insert(0, os.path.join(_HERE, "python"))

import argparse  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402

from espalier_tokens import output, rows, sources, stop  # noqa: E402
from espalier_tokens.coder import Coder  # noqa: E402
from espalier_tokens.stop import Stop  # noqa: E402

EXAMPLES = """\
examples:
  # plain text, packed into full rows of 2048 tokens
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 2048 --out data/web.h5 corpus/

  # questions with answers, one a row; only the answer's tokens count in the loss
  launch/tokenize.py --tokenizer models/Qwen2.5-7B --sequence-tokens 512 --out data/math.h5 \\
      --template "{question}\\n{answer}" --loss-on answer --max-sequences 1000 --seed 1 train.jsonl
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Stop(
            stop.USAGE, "the command line is wrong", message, "see launch/tokenize.py --help"
        )


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} (it must be at least 1)")
    return value


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
        nargs="+",
        metavar="INPUT",
        help="text files, .jsonl files, or directories (searched through, in the order of names)",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.json, or a model directory that has one",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    parser.add_argument(
        "--sequence-tokens", required=True, type=positive, metavar="S", help="tokens of a row"
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
        help="one document a row: what happens to those longer than S (default: drop)",
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
    parser.add_argument("--max-sequences", type=positive, metavar="N", help="stop after N rows")
    parser.add_argument(
        "--seed", type=int, metavar="K", help="shuffle the documents (default: keep their order)"
    )
    parser.add_argument(
        "--vocab-size",
        type=positive,
        metavar="V",
        help="vocabulary of the model (default: from config.json beside the tokenizer, "
        "else the tokenizer's own)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return parser


def settle(args):
    """Checks what flags mean together and fills in what depends on others."""
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
    args.parts = sources.parse_template(args.template, args.loss_on) if args.template else None
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


def summary(args, out, counts, seconds):
    parts = [f"{out.rows:,} rows of {args.sequence_tokens}, {counts.tokens:,} tokens"]
    if args.loss_on:
        parts.append(f"{counts.counted:,} count in the loss")
    parts.append(f"{counts.documents:,} documents")
    for number, words in (
        (counts.overlong, "overlong dropped"),
        (counts.truncated, "truncated"),
        (counts.empty, "empty skipped"),
        (counts.unlearned, "without a token to predict skipped"),
        (counts.rest, "tokens of rest dropped"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    rate = counts.tokens / max(seconds, 1e-9)
    return f"{args.out}: {', '.join(parts)}; {seconds:.1f} s, {rate:,.0f} tokens/s"


def check_output(args):
    folder = os.path.dirname(args.out) or "."
    if os.path.isdir(args.out) or (os.path.lexists(args.out) and not args.force):
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


def run(argv):
    begin = time.monotonic()
    args = settle(make_parser().parse_args(argv))
    check_output(args)
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
    coder = Coder(args.tokenizer, args.bos, args.eos, args.pack, args.vocab_size)
    files = sources.find_sources(args.inputs, args.template)
    reader, counts = sources.Reader(files, args), rows.Counts()
    out = output.TokenFile(args.out)
    progress = output.Progress(reader.bytes, args.quiet)
    try:
        out.open(
            args.sequence_tokens, lengths=not args.pack or args.keep_rest, masks=bool(args.loss_on)
        )
        rows.write_rows(reader, coder, out, args, counts, progress)
        if out.rows == 0:
            raise rows.no_rows(args, counts)
        out.finish(
            {
                "format": "espalier-tokens",
                "version": 1,
                "vocab_size": coder.vocab_size,
                "tokenizer_sha256": coder.sha256,
                "source_sha256": sources.source_digest(files),
                "template": sources.unescape(args.template) if args.template else "",
                "sources": json.dumps(
                    [{"path": s.path, "bytes": s.bytes, "sha256": s.sha256} for s in files],
                    ensure_ascii=False,
                ),
                "seed": -1 if args.seed is None else args.seed,
                "loss_on": ",".join(args.loss_on),
                "packed": int(args.pack),
                "tokenizers_version": tokenizers.__version__,
            }
        )
    except OSError as error:
        raise stop.stop_of(error, args.out, writing=True)
    finally:
        progress.clear()
        reader.close()
        out.discard()
    if not args.quiet:
        print(summary(args, out, counts, time.monotonic() - begin))


def interrupted(number, _frame):
    raise KeyboardInterrupt(number)


def main(argv=None):
    signal.signal(signal.SIGTERM, interrupted)
    try:
        run(argv)
    except Stop as problem:
        print(problem.block(), file=sys.stderr)
        return problem.code
    except KeyboardInterrupt as interrupt:
        print("tokenize: interrupted, nothing was written", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
