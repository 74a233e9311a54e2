#!/usr/bin/env python3
"""Writes answer_cases.json: what Python's re finds with the regular expressions of lm-evaluation-harness 0.4.13 for gsm8k.

  answer_cases.py          writes it beside this file
  answer_cases.py --check  exits with 1 if it holds something else

A case is [text, strict, flexible, comparable]: the text, what the filters strict-match and flexible-extract make of it, and
what the metric exact_match compares of it.
"""

import json
import pathlib
import random
import re
import sys

FILE = pathlib.Path(__file__).with_name("answer_cases.json")
IGNORED = (",", "\\$", "(?s).*#### ", "\\.$")
PARTS = ["#### ", "####", "#", " ", "-", "--", "$", ".", ",", "\n", "0", "7", "18", "1,234", "3.50", "x", "A", "é", "€", "٣", "\r\n",
         "#### -", "answer is ", ".\n"]
KNOWN = ["", "#### 18", "so 9 * 2 = 18.\n#### 18", "#### $1,234.50", "####18", "##### -5.", "#### -", "#### --5 #### 6",
         "$", "-$5", "$5.", "-5", "--5", "5-3", "1 2 3", "no number", "...", "a.b", "#### .\n", "#### 5.\n", "#### 5..", "5.\n.",
         "#### #### 7", "##,## 9", "THE End.", "7\n\n", "-,", "1-", "12-34-", "#### 1\n#### 2"]


def found(pattern, text, which):
    """lm_eval.filters.extraction.RegexFilter with a fallback."""
    matches = re.findall(pattern, text)
    if not matches:
        return "[invalid]"
    match = matches[which]
    if isinstance(match, tuple):
        match = [part for part in match if part][0]
    return match.strip()


def comparable(text):
    """lm_eval.api.metrics.exact_match_hf_evaluate with ignore_case, on one side."""
    for pattern in IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


def cases():
    drawn = random.Random(20)
    texts = KNOWN + ["".join(drawn.choices(PARTS, k=drawn.randint(1, 9))) for _ in range(2000)]
    for text in dict.fromkeys(texts):
        yield [text, found(r"#### (\-?[0-9\.\,]+)", text, 0), found(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text, -1),
               comparable(text)]


def main():
    text = "[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases()) + "\n]\n"
    if sys.argv[1:] == ["--check"]:
        sys.exit(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
