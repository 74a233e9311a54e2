"""The command line: its flags, and what they mean together."""

import argparse
import datetime
import sys

from espalier_launch import stop
from espalier_launch.program import Parser
from espalier_launch.stop import Stop

from . import chat, choices, mix, prompts, template
from .coder import MOST_IDS

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


def add_input(group):
    group.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, pipes, or directories (searched through, in the order of names)",
    )
    group.add_argument(
        "--mix",
        action="append",
        default=[],
        metavar="WEIGHT:PATH",
        help="instead of INPUT, repeated: inputs by weight; each gets its share of --tokens, and "
        "their rows take turns. WEIGHT,LAYOUT:PATH tells the layout of one",
    )
    group.add_argument(
        "--input-format",
        choices=("auto", "text", "jsonl", "json", "parquet"),
        default="auto",
        help="how to read the named files and pipes (default: by their endings, see below)",
    )
    group.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out records with something wrong in them, and count them; otherwise the first "
        "one ends the program",
    )
    group.add_argument(
        "--seed",
        type=integer(0, sys.maxsize),
        metavar="K",
        help="shuffle the documents (default: keep their order)",
    )


def add_making(group):
    group.add_argument(
        "--field", default="text", help="field of a jsonl line that holds its text (default: text)"
    )
    group.add_argument(
        "--template",
        metavar="TEXT",
        help=r'text of a jsonl line from its fields, e.g. "{question}\n{answer}"; \n, \t, \\ are '
        "understood, {{ and }} are braces. One sequence a row",
    )
    group.add_argument(
        "--loss-on",
        metavar="FIELD",
        action="append",
        default=[],
        help="only the tokens of this field of the template count in the loss (may be repeated)",
    )
    group.add_argument(
        "--chat",
        action="store_true",
        help="text of a record: its conversation (messages, or question and answer) as the model's "
        "own chat template writes it; what the assistant says counts in the loss. One sequence a row",
    )
    group.add_argument(
        "--chat-date",
        type=date,
        metavar="YYYY-MM-DD",
        help="chat: what templates that write the date take for today",
    )
    group.add_argument(
        "--task",
        choices=("text", "multiple_choice", "exact_match"),
        default="text",
        help="what the rows are for: text to predict (default), items with options of which one is "
        "right, or questions that the model answers in its own words",
    )
    group.add_argument(
        "--layout",
        choices=choices.NAMES,
        default="auto",
        help="multiple choice: the data set whose fields and prompt the records have "
        "(default: by their fields)",
    )
    group.add_argument(
        "--gisp-as-released",
        action="store_true",
        help="multiple choice: two faults of GISP's released code: context and answer encoded each "
        "alone, without the space between; WinoGrande's second option always counts as right",
    )
    group.add_argument(
        "--shots",
        type=integer(0, 1000),
        metavar="N",
        help="exact match: worked examples before each question (default: 5)",
    )
    group.add_argument(
        "--shots-from", metavar="FILE", help="exact match: questions with answers to draw them from"
    )
    group.add_argument(
        "--shots-seed",
        type=integer(0, sys.maxsize),
        metavar="K",
        help="exact match: how they are drawn (default: 1234, as lm-evaluation-harness draws)",
    )


def add_rows(group):
    group.add_argument(
        "--sequence-tokens",
        required=True,
        type=integer(1, MOST_ROW),
        metavar="S",
        help="tokens of a row",
    )
    group.add_argument(
        "--pack",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fill rows with one document after another (default without --template), "
        "or give each document a row of its own",
    )
    group.add_argument(
        "--keep-rest",
        action="store_true",
        help="packing: keep the last, unfilled row (it gets a length); otherwise it is dropped",
    )
    group.add_argument(
        "--join",
        metavar="TEXT",
        help=r"packing: the documents of an input are one, with TEXT between them (\n and \t are "
        "understood), as perplexities of a corpus are often measured",
    )
    group.add_argument(
        "--window",
        action="store_true",
        help="one document a row: S tokens from a place drawn with --seed, of documents that have "
        "more; the others are dropped",
    )
    group.add_argument(
        "--overlong",
        choices=("drop", "truncate"),
        default="drop",
        help="one document a row: what happens to those longer than S (default: drop; an item of "
        "options falls whole). Options are truncated from the left",
    )
    group.add_argument(
        "--bos",
        default="auto",
        metavar="auto|none|TOKEN",
        help="before each document; auto: what the tokenizer itself puts there",
    )
    group.add_argument(
        "--eos",
        default="auto",
        metavar="auto|none|TOKEN",
        help="behind each document; auto: packing: the end-of-document token, "
        "else what the tokenizer itself puts there",
    )
    group.add_argument(
        "--max-sequences", type=integer(1, sys.maxsize), metavar="N", help="stop after N rows"
    )
    group.add_argument(
        "--tokens",
        type=integer(2, sys.maxsize),
        metavar="T",
        help="stop before the row (or the item of options) that would make it more than T tokens",
    )


def add_output(group):
    group.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.json, or a model directory that has one",
    )
    group.add_argument(
        "--vocab-size",
        type=integer(1, MOST_IDS),
        metavar="V",
        help="vocabulary of the model (default: from config.json beside the tokenizer, "
        "else the tokenizer's own)",
    )
    group.add_argument("--out", required=True, metavar="FILE", help="the HDF5 file to write")
    group.add_argument("--force", action="store_true", help="replace FILE if it exists")
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")


def make_parser():
    parser = Parser(
        prog="launch/tokenize.py",
        description="Turns text into the token files that espalier reads (HDF5; docs/file-formats.md).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        allow_abbrev=False,
    )
    for title, add in (
        ("input", add_input),
        ("model and output", add_output),
        ("what a row is made of", add_making),
        ("rows", add_rows),
    ):
        add(parser.add_argument_group(title))
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


def settle_documents(args):
    if args.join is not None and not args.pack:
        raise Stop(
            stop.USAGE,
            "--join needs packing",
            "a row of its own for each document leaves nothing to join",
            "drop --join",
        )
    if not args.window:
        return
    what, why = "--window", "a row is a piece of one document of text, and all its tokens count"
    exclude(args, ("loss_on", "chat", "task", "pack"), what, why)
    if args.seed is None:
        raise Stop(
            stop.USAGE,
            "--window needs --seed",
            "places in documents are drawn",
            "add for example --seed 0",
        )


def settle(args):
    """Checks what flags mean together and fills in what depends on others."""
    for name in ("template", "field", "bos", "eos", "join"):
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
    if args.pack is None:
        args.pack = args.template is None and not args.window
    if args.keep_rest and not args.pack:
        raise Stop(
            stop.USAGE,
            "--keep-rest needs packing",
            "with one document a row there is no rest",
            "drop --keep-rest",
        )
    settle_documents(args)
    if args.sequence_tokens < 2:
        raise Stop(
            stop.USAGE,
            "--sequence-tokens 1 is too short",
            "the first token of a row is never predicted",
            "use at least 2",
        )
    return args
