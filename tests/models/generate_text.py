#!/usr/bin/env python3
"""Writes the text the small test model learns from: three domains that really differ.

  prose  short stories and descriptions: names, pronouns, colours and places are carried through a
         paragraph, verbs agree with their subjects, plurals with their numbers
  math   questions with worked answers: column addition and subtraction, products by parts,
         comparisons, sequences, word problems; every result is computed, none is written down
  code   functions of a small imperative language: nested blocks, variables used as they were named,
         calls that fit the definition above them, with the values they really have

Everything comes from the word lists and grammars of text_prose.py, text_arithmetic.py and
text_code.py and from a seed; the same seed gives the same bytes on every machine. No text (of math:
no question) occurs in two splits.

  generate_text.py --out DIR [--seed 0] [--train 40000] [--heldout-bytes 140000] ...

writes DIR/{prose,math,code}.{train,calibration,heldout}.jsonl, one {"text": ...} a line; math lines
also hold "question" and "answer", where text = question + "\\n" + answer.
"""

import argparse
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import text_arithmetic
import text_code
import text_prose

DOMAINS = ("prose", "math", "code")

MAKERS = {
    "prose": text_prose.prose,
    "math": text_arithmetic.question_with_answer,
    "code": text_code.code,
}


def documents(domain, seed, split):
    """An endless seeded stream of documents; every split has a stream of its own."""
    rng = random.Random(f"{seed}/{domain}/{split}")
    while True:
        yield MAKERS[domain](rng)


def key_of(document):
    """What makes two documents the same: of math the question alone: no answer is known before."""
    return document.get("question", document["text"])


def take(stream, seen, count=None, limit_bytes=None):
    """Documents of `stream` not in `seen`: `count` of them, or up to `limit_bytes` of jsonl."""
    taken, size = [], 0
    for document in stream:
        key = key_of(document)
        if key in seen:
            continue
        line = len(json.dumps(document, ensure_ascii=False)) + 1
        if (count is not None and len(taken) == count) or (
            limit_bytes is not None and size + line > limit_bytes
        ):
            return taken
        seen.add(key)
        taken.append(document)
        size += line
    raise AssertionError("a document stream ended")


def make_splits(seed, train, calibration_bytes, heldout_bytes):
    """{domain: {split: documents}}; held-out first: a longer training set never changes it."""
    splits = {}
    for domain in DOMAINS:
        seen = set()
        splits[domain] = {
            "heldout": take(documents(domain, seed, "heldout"), seen, limit_bytes=heldout_bytes),
            "calibration": take(
                documents(domain, seed, "calibration"), seen, limit_bytes=calibration_bytes
            ),
            "train": take(documents(domain, seed, "train"), seen, count=train),
        }
    return splits


def write_jsonl(path, documents_):
    with open(path, "w", encoding="utf-8") as out:
        for document in documents_:
            out.write(json.dumps(document, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description="Write the seeded three-domain text of the test model."
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=40000, help="training documents per domain")
    parser.add_argument(
        "--calibration-bytes", type=int, default=140000, help="jsonl bytes per domain"
    )
    parser.add_argument("--heldout-bytes", type=int, default=140000, help="jsonl bytes per domain")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for domain, splits in make_splits(
        args.seed, args.train, args.calibration_bytes, args.heldout_bytes
    ).items():
        for split, documents_ in splits.items():
            write_jsonl(args.out / f"{domain}.{split}.jsonl", documents_)
            print(f"{domain:6s} {split:12s} {len(documents_):7d} documents")


if __name__ == "__main__":
    main()
