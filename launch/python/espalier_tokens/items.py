"""Rows of multiple choice: an option a row, the rows of an item behind one another."""

from . import choices
from .rows import BATCH_CHARACTERS, BATCH_TEXTS, padded


def batches(reader, args, counts):
    """Items worth one call of the tokenizer."""
    batch, size = [], 0
    for item in reader.each(lambda record, place: choices.item_of(record, args.layout, place)):
        counts.documents += 1
        if item.blank():
            counts.empty += 1
            continue
        if args.gisp_as_released and item.layout == "winogrande":
            item.right = 1  # it compares the text of the answer with the number 1
        batch.append(item)
        size += sum(len(option.context) + len(option.continuation) for option in item.options)
        if size >= BATCH_CHARACTERS or len(batch) * len(item.options) >= BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pairs_of(batch, coder):
    """(tokens of the context, tokens of the whole) of every option of every item.

    The continuation's tokens are those of the whole behind as many as the context alone has; white
    space at the context's end belongs to the continuation.
    """
    contexts = list(dict.fromkeys(o.context.rstrip() for item in batch for o in item.options))
    wholes = [o.context + o.continuation for item in batch for o in item.options]
    encodings = coder.encode(contexts + wholes, offsets=False)
    for text, encoding in zip(contexts + wholes, encodings):
        coder.check_ids(encoding.ids, f"it occurs in a text that begins with {text[:40]!r}")
    sizes = {text: len(encoding.ids) for text, encoding in zip(contexts, encodings)}
    following = iter(encodings[len(contexts) :])
    for item in batch:
        yield item, [(sizes[o.context.rstrip()], next(following).ids) for o in item.options]


def pairs_as_released(batch, coder):
    """What GISP's released code encodes: context and answer each alone, the answer without the space."""
    options = [option for item in batch for option in item.options]
    texts = [t for o in options for t in (o.context, o.continuation.removeprefix(" "))]
    encodings = coder.encode(texts, offsets=False)
    for text, encoding in zip(texts, encodings):
        coder.check_ids(encoding.ids, f"it occurs in a text that begins with {text[:40]!r}")
    ids = iter(encoding.ids for encoding in encodings)
    for item in batch:
        pairs = [(next(ids), next(ids)) for _ in item.options]
        yield item, [(len(context), context + answer) for context, answer in pairs]


def rows_of_item(item, pairs, coder, args, counts):
    """The rows of an item, or none where one of them is too long or has no token to predict."""
    width, rows = args.sequence_tokens, []
    for number, (option, (context, whole)) in enumerate(zip(item.options, pairs)):
        begin = len(coder.prefix) + context
        ids = coder.prefix + whole + coder.suffix
        answer = max(0, len(coder.prefix) + len(whole) - max(1, begin))
        cut = max(0, len(ids) - width)  # from the left
        if cut and (args.overlong == "drop" or answer + len(coder.suffix) >= width):
            counts.overlong += 1
            return []
        if answer == 0:
            counts.unlearned += 1
            return []
        mask = [0] * (len(ids) - len(coder.suffix) - answer) + [1] * answer
        mask += [0] * len(coder.suffix)
        row = padded(ids[cut:], mask[cut:], coder, width)
        row.update(option=number, correct=int(number == item.right), normalizer=option.characters)
        rows.append((row, cut > 0))
    counts.truncated += any(cut for _, cut in rows)
    return [row for row, _ in rows]


def units(reader, coder, args, counts):
    """The rows of each item."""
    encode = pairs_as_released if args.gisp_as_released else pairs_of
    for batch in batches(reader, args, counts):
        for item, pairs in encode(batch, coder):
            rows = rows_of_item(item, pairs, coder, args, counts)
            if rows:
                yield rows
