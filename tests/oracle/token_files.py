"""Small token files for the comparisons, written without espalier."""

import json
import pathlib

import h5py
import numpy


def write(path, tokens, vocabulary, length=None, loss_mask=None, **others):
    with h5py.File(path, "w") as file:
        file["tokens"] = numpy.asarray(tokens, dtype="int32")
        if length is not None:
            file["length"] = numpy.asarray(length, dtype="int32")
        if loss_mask is not None:
            file["loss_mask"] = numpy.asarray(loss_mask, dtype="uint8")
        for name, values in others.items():
            file[name] = values
        file.attrs["format"] = "espalier-tokens"
        file.attrs["version"] = 1
        file.attrs["vocab_size"] = vocabulary


def random_plain(path, rows, width, vocabulary, seed):
    write(path, numpy.random.default_rng(seed).integers(0, vocabulary, (rows, width)), vocabulary)


def random_answers(path, rows, width, vocabulary, seed):
    """Rows of different lengths of which the second half counts."""
    generator = numpy.random.default_rng(seed)
    length = generator.integers(4, width + 1, rows)
    mask = numpy.zeros((rows, width))
    for i, n in enumerate(length):
        mask[i, n // 2 : n] = 1
    write(path, generator.integers(0, vocabulary, (rows, width)), vocabulary, length, mask)


def write_options(path, items, vocabulary, normalizers=True):
    """A file of options. An item is a list of (context ids, continuation ids, right, characters); the first id is no
    continuation's."""
    rows = [(i, k, *option) for i, item in enumerate(items) for k, option in enumerate(item)]
    length = [len(context) + len(answer) for _, _, context, answer, _, _ in rows]
    tokens, mask = numpy.zeros((2, len(rows), max(length)), dtype="int32")
    for n, (_, _, context, answer, _, _) in enumerate(rows):
        tokens[n, : length[n]] = [*context, *answer]
        mask[n, len(context) : length[n]] = 1
    others = {"normalizer": numpy.array([row[5] for row in rows], dtype="int32")} if normalizers else {}
    write(path, tokens, vocabulary, length, mask,
          item=numpy.array([row[0] for row in rows], dtype="int32"),
          option=numpy.array([row[1] for row in rows], dtype="int16"),
          correct=numpy.array([row[4] for row in rows], dtype="uint8"), **others)


def random_options(path, items, vocabulary, seed, normalizers=True):
    """Items of two to five options of different lengths, one or two of which are right."""
    generator = numpy.random.default_rng(seed)
    drawn = []
    for _ in range(items):
        context = generator.integers(0, vocabulary, generator.integers(1, 9)).tolist()
        options = int(generator.integers(2, 6))
        right = generator.permutation([1] + [int(x) for x in generator.integers(0, 2, options - 2)] + [0])
        drawn.append([(context, generator.integers(0, vocabulary, generator.integers(1, 8)).tolist(), right[k],
                       int(generator.integers(1, 40))) for k in range(options)])
    write_options(path, drawn, vocabulary, normalizers)


def from_text(path, tokenizer_directory, text_file, rows, width, vocabulary):
    """The first documents of a jsonl file, packed into rows."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(tokenizer_directory) / "tokenizer.json"))
    ids = []
    with open(text_file, encoding="utf-8") as lines:
        for line in lines:
            ids += tokenizer.encode(json.loads(line)["text"]).ids
            if len(ids) >= rows * width:
                break
    write(path, numpy.asarray(ids[: rows * width]).reshape(rows, width), vocabulary)


def write_prompts(path, prompts, answers, pieces, vocabulary, stop=(), eos=()):
    """Prompts with answers; `pieces` are the bytes of every token."""
    tokens = numpy.zeros((len(prompts), max(2, *map(len, prompts))), dtype="int32")
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    write(path, tokens, vocabulary, [len(p) for p in prompts])
    with h5py.File(path, "r+") as file:
        file.create_dataset("answer", data=list(answers), dtype=h5py.string_dtype("utf-8"))
        file["piece_bytes"] = numpy.frombuffer(b"".join(pieces), dtype="uint8")
        file["piece_ends"] = numpy.cumsum([len(p) for p in pieces], dtype="int64")
        file.attrs.update({"task": "exact_match", "stop": json.dumps(list(stop)), "eos_ids": numpy.asarray(eos, dtype="int32")})
