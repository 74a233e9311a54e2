"""Small token files for the comparisons, written without espalier."""

import json
import pathlib

import h5py
import numpy


def write(path, tokens, vocabulary, length=None, loss_mask=None):
    with h5py.File(path, "w") as file:
        file["tokens"] = numpy.asarray(tokens, dtype="int32")
        if length is not None:
            file["length"] = numpy.asarray(length, dtype="int32")
        if loss_mask is not None:
            file["loss_mask"] = numpy.asarray(loss_mask, dtype="uint8")
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
