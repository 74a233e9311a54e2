"""What the token file holds besides its rows: datasets by name, whole tables, attributes."""

import json

from . import mix, pieces, prompts, sources, template


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
        **({} if args.join is None else {"join": template.unescape(args.join)}),
        **({"window": 1} if args.window else {}),
        "packed": int(args.pack),
        "tokenizers_version": version,
    }
