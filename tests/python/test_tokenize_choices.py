"""Multiple choice in launch/tokenize.py; run as test_tokenize.py."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from published_records import published
from tokenize_case import ROOT, Case, byte_bpe, llama_like

from espalier_tokens import choices, documents  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
HARNESS = json.loads((HERE / "harness_requests.json").read_text())
LM_EVAL = ROOT / ".venv" / "lm-eval-0.4.13"
DATA = os.environ.get("ESPALIER_TEST_DATA")


def parsed(record):
    return documents.parse(json.dumps(record), "a.jsonl:1")


def asked(record, layout="auto"):
    """What the harness is asked for a record, in the form of harness_requests.json."""
    item = choices.item_of(parsed(record), layout, "a.jsonl:1")
    return {
        "requests": [[option.context, option.continuation] for option in item.options],
        "right": item.right,
        "lengths": [option.characters for option in item.options],
    }


def encode_pair(tokenizer, context, continuation):
    """(tokens before, tokens of the continuation), by the words of the harness's documentation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    whole = tokenizer.encode(context + continuation).ids
    count = len(tokenizer.encode(context).ids)
    return whole[:count], whole[count:]


class Layouts(unittest.TestCase):
    def test_prompts_of_the_harness(self):
        for name, records in HARNESS["records"].items():
            for record, expected in zip(records, HARNESS["asked"][name], strict=True):
                with self.subTest(record=record):
                    self.assertEqual(asked(record), expected)
                    self.assertEqual(asked(record, name), expected)

    def test_spellings_of_one_item(self):
        texts, question = ["ice", "fire", "snow"], "Which is hot?"
        arc = HARNESS["asked"]["arc"][0]
        labelled = [{"text": t, "label": c} for t, c in zip(texts, "ABC")]
        for record in (
            {"question": question, "choices": texts, "answer": 1},
            {"question": question, "choices": texts, "answer": "fire"},
            {"question": question, "choices": texts, "answer": "B"},
            {"question": question, "choices": texts, "answer": "b"},
            {"question": question, "choices": texts, "answerKey": "B"},
            {"question": question, "choices": texts, "label": "1"},
            {"question": question, "choices": texts, "gold": 1},
            {"question": question, "choices": texts, "answer_idx": 1},
            {"question": question, "choices": labelled, "answerKey": "B"},
            {"question": {"stem": question, "choices": labelled}, "answerKey": "B"},
            {"question": question, "choices": {"text": texts}, "answer": 1},
            {
                "question": question,
                "choices": {"text": texts, "label": [1, 2, 3]},
                "answerKey": "2",
            },
        ):
            with self.subTest(record=record):
                self.assertEqual(asked(record), arc)
                open_book = asked(record, "openbookqa")
                self.assertEqual(open_book["requests"][0], [question, " ice"])
                self.assertEqual(open_book["right"], 1)

    def test_the_other_shapes(self):
        table = HARNESS["asked"]
        context = table["hellaswag"][0]["requests"][0][0]
        endings = [request[1][1:] for request in table["hellaswag"][0]["requests"]]
        for name, number, record in (
            (
                "boolq",
                1,
                {
                    "passage": "Water - H2O\nis wet.",
                    "question": "is water wet",
                    "choices": ["yes", "no"],
                    "answer": 0,
                },
            ),
            (
                "boolq",
                1,
                {"passage": "Water - H2O\nis wet.", "question": "is water wet", "answer": True},
            ),
            (
                "boolq",
                1,
                {"passage": "Water - H2O\nis wet.", "question": "is water wet", "answer": "yes"},
            ),
            (
                "boolq",
                0,
                {"passage": "Ice is cold. ", "question": "is ice warm", "answer": "False"},
            ),
            ("hellaswag", 0, {"context": context, "choices": endings, "answer": 0}),
            (
                "hellaswag",
                0,
                {
                    "activity_label": "Washing dishes",
                    "ctx": "A man is in a kitchen. He",
                    "endings": HARNESS["records"]["hellaswag"][0]["endings"],
                    "label": 0,
                },
            ),
            ("winogrande", 0, {**HARNESS["records"]["winogrande"][0], "answer": 1}),
            ("winogrande", 0, {**HARNESS["records"]["winogrande"][0], "answer": "trophy"}),
            (
                "winogrande",
                1,
                {
                    "sentence": "_ lost to Bob because   _ was weak.",
                    "choices": ["Al", "Bo "],
                    "answer": 1,
                },
            ),
            (
                "piqa",
                0,
                {
                    "goal": "open a can",
                    "choices": ["Use a can opener.", "use  a spoon "],
                    "answer": 0,
                },
            ),
        ):
            with self.subTest(record=record):
                self.assertEqual(asked(record), table[name][number])
        piqa = {
            "question": "open a can",
            "choices": ["Use a can opener.", "use  a spoon "],
            "answer": 0,
        }
        self.assertEqual(asked(piqa, "piqa"), table["piqa"][0])
        medqa = {**HARNESS["records"]["medqa"][0], "label": "B"}
        self.assertEqual(asked(medqa), table["medqa"][0])

    def test_numbers_that_are_choices(self):
        record = {"question": "4 * 8 =", "choices": [40, 32], "answer": 32}
        self.assertEqual(asked(record)["right"], 1)
        self.assertEqual(asked(record)["requests"][1][1], " 32")
        record = {
            "question": "2 * 1 =",
            "choices": ["1", "3", "2"],
            "answer": 2,
        }  # texts: it counts
        self.assertEqual(asked(record)["right"], 2)

    @unittest.skipUnless(LM_EVAL.is_dir(), f"no lm-eval 0.4.13 in {LM_EVAL.name}")
    @unittest.skipUnless(DATA, "ESPALIER_TEST_DATA is not set")
    def test_prompts_against_the_harness_itself(self):
        records = {name: list(those) for name, those in HARNESS["records"].items()}
        ours = {name: [asked(record) for record in those] for name, those in records.items()}
        for name, file in (
            ("boolq", "boolq_validation"),
            ("piqa", "piqa_validation"),
            ("winogrande", "winogrande_validation"),
            ("arc", "arc_challenge_validation"),
            ("openbookqa", "openbookqa_validation"),
        ):
            with open(f"{DATA}/data/mcq/{file}.jsonl") as lines:
                for _, line in zip(range(100), lines):
                    record = json.loads(line)
                    records[name].append(published(name, record))
                    ours[name].append(asked(record, name))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "records.json")
            path.write_text(json.dumps(records))
            done = subprocess.run(
                [sys.executable, HERE / "harness_requests.py", LM_EVAL, path],
                capture_output=True,
                text=True,
                env={**os.environ, "HF_HOME": folder, "PYTHONPATH": ""},
            )
        self.assertEqual(done.returncode, 0, done.stderr)
        theirs = json.loads(done.stdout)
        for name in records:
            for record, ask, expected in zip(records[name], ours[name], theirs[name], strict=True):
                self.assertEqual(ask, expected, record)


class Rows(Case):
    RECORDS = [record for those in HARNESS["records"].values() for record in those]
    ASKED = [item for those in HARNESS["asked"].values() for item in those]

    def choose(self, path, *arguments, tokens=128):
        return self.make(path, "--task", "multiple_choice", "--force", *arguments, tokens=tokens)

    def check(self, data, items, tokens=128):
        """Every row against the harness's own words."""
        rows = iter(range(len(data["tokens"])))
        for number, item in enumerate(items):
            for option, (pair, characters) in enumerate(zip(item["requests"], item["lengths"])):
                row, (before, answer) = next(rows), encode_pair(self.tokenizer, *pair)
                ids = (before + answer)[-tokens:]
                length = data["length"][row]
                self.assertEqual(data["tokens"][row][:length].tolist(), ids)
                mask = [0] * (len(ids) - len(answer)) + [1] * len(answer)
                self.assertEqual(data["loss_mask"][row].tolist(), mask + [0] * (tokens - length))
                self.assertEqual(
                    [data[name][row] for name in ("item", "option", "correct", "normalizer")],
                    [number, option, option == item["right"], characters],
                )
        self.assertIsNone(next(rows, None))

    def test_rows(self):
        path = self.write("a.jsonl", self.RECORDS)
        data = self.choose(path)
        self.check(data, self.ASKED)
        self.assertEqual(
            {name: str(self.types[name]) for name in self.types},
            {
                "tokens": "int32",
                "length": "int32",
                "loss_mask": "uint8",
                "item": "int32",
                "option": "int16",
                "correct": "uint8",
                "normalizer": "int32",
            },
        )
        attributes = data["attributes"]
        self.assertEqual((attributes["task"], attributes["layout"]), ("multiple_choice", "auto"))
        self.assertEqual((attributes["packed"], attributes["version"]), (0, 1))
        self.assertIn("14 items", self.printed)
        self.assertIn("count in the loss", self.printed)
        for tokenizer in (byte_bpe(vocab=420, crossing=True), byte_bpe(trim=True), llama_like()):
            self.use(tokenizer, settings={"eos_token": "</s>", "add_eos_token": True})
            if tokenizer.token_to_id("<s>") is None:
                self.check(self.choose(path), self.ASKED)
            else:  # letters it does not know are one token together, also over the border
                data = self.choose(path)
                self.assertTrue((data["tokens"][:, 0] == 1).all())
                self.assertFalse(data["loss_mask"][:, 0].any())

    def test_real_tokenizer(self):
        if not DATA:
            self.skipTest("ESPALIER_TEST_DATA is not set")
        self.use(Tokenizer.from_file(f"{DATA}/tokenizers/mistral/tokenizer_v3.json"))
        data = self.choose(self.write("a.jsonl", self.RECORDS))
        self.check(data, self.ASKED)
        self.assertTrue((data["tokens"][:, 0] == 1).all())

    def test_order_by_seed_keeps_items_together(self):
        path = self.write("a.jsonl", self.RECORDS)
        data = self.choose(path, "--seed", 3)
        first = self.choose(path)
        self.assertFalse(np.array_equal(first["tokens"], data["tokens"]))
        self.assertEqual(data["item"].tolist(), sorted(data["item"]))
        begins = np.flatnonzero(np.diff(data["item"], prepend=-1))
        self.assertTrue((data["option"][begins] == 0).all())
        self.assertTrue((np.add.reduceat(data["correct"], begins) == 1).all())

    def test_overlong_items_fall_whole(self):
        long = {"question": "the cat " * 30, "choices": ["sat", "on"], "answer": 0}
        short = {"question": "two", "choices": ["four", "make"], "answer": 1}
        mixed = {"question": "two", "choices": ["four", "make " * 60], "answer": 0}
        path = self.write("a.jsonl", [long, short, mixed])
        data = self.choose(path, tokens=48)
        self.assertEqual(len(data["tokens"]), 2)
        self.assertIn("2 overlong dropped", self.printed)
        data = self.choose(path, "--overlong", "truncate", tokens=48)
        self.check(data, [asked(long), asked(short)], tokens=48)
        self.assertIn("1 overlong dropped, 1 truncated", self.printed)
        self.assertEqual(data["length"].tolist()[:2], [48, 48])

    def test_a_limit_splits_no_item(self):
        path = self.write("a.jsonl", HARNESS["records"]["arc"] * 3)
        for limit, rows in ((3, 3), (4, 3), (6, 3), (7, 7), (9, 7), (10, 10)):
            data = self.choose(path, "--max-sequences", limit)
            self.assertEqual(
                (len(data["tokens"]), data["item"].max() + 1), (rows, {3: 1, 7: 2, 10: 3}[rows])
            )
            self.assertIn("stopped at --max-sequences", self.printed)
        self.assert_stops(
            65,
            "--max-sequences 2",
            arguments=[path, "--task", "multiple_choice", "--max-sequences", 2, "--force"],
            tokens=64,
        )

    def test_items_without_text_are_skipped(self):
        good = {"question": "two", "choices": ["four", "make"], "answer": 1}
        path = self.write(
            "a.jsonl", [good, {**good, "choices": ["four", " "]}, {**good, "question": "\n"}]
        )
        # The prompt of a blank question has text of its own in the layout of ARC.
        self.assertEqual(len(self.choose(path)["tokens"]), 4)
        self.assertIn("1 empty skipped", self.printed)
        self.assertEqual(len(self.choose(path, "--layout", "openbookqa")["tokens"]), 2)
        self.assertIn("2 empty skipped", self.printed)

    def test_directories(self):
        self.write("d/a.json", json.dumps(self.RECORDS[:4]))
        self.write("d/settings.json", '{"question": "no item"}')
        self.write("d/notes.txt", "words")
        data = self.choose(self.dir / "d")
        self.assertEqual(data["item"].max(), 3)
        self.assertIn("settings.json (no records with the fields of an item)", self.printed)
        self.assertIn("notes.txt (text has no fields for --task multiple_choice)", self.printed)


class Refused(Case):
    GOOD = {"question": "q", "choices": ["a", "b"], "answer": 0}

    def refuse(self, record, *words, arguments=()):
        content = record if isinstance(record, str) else json.dumps(record)
        path = self.write("bad.jsonl", json.dumps(self.GOOD) + "\n" + content + "\n")
        arguments = [path, "--task", "multiple_choice", *arguments]
        with self.subTest(record=record):
            self.assert_stops(65, "bad.jsonl:2", *words, arguments=arguments, tokens=64)

    def test_hostile_items(self):
        good = self.GOOD
        for record, words in (
            ({**good, "answer": 2}, ("none of the choices", "is 2", "2 choices")),
            ({**good, "answer": -1}, ("none of the choices", "-1")),
            ({**good, "answer": 0.5}, ("none of the choices", "0.5")),
            ({**good, "answer": 10**30}, ("none of the choices",)),
            ({**good, "answer": "c"}, ("none of the choices", '"c"')),
            ({**good, "answer": ""}, ("none of the choices", "test splits")),
            ({**good, "answer": "\u00df"}, ("none of the choices",)),
            ({**good, "answer": "\u0663"}, ("none of the choices",)),
            ({**good, "answer": None}, ("field 'answer' is no answer", "null")),
            ({**good, "answer": True}, ("field 'answer' is no answer", "true")),
            ({**good, "answer": ["a"]}, ("field 'answer' is no answer", "an array")),
            ('{"question": "q", "choices": ["a", "b"], "answer": NaN}', ("no answer", "NaN")),
            ({"question": "q", "choices": ["a", "b"]}, ("no field 'answerKey' or another answer",)),
            ({**good, "answer": "1"}, ("not clear", "choice 0 or 1")),
            ({**good, "choices": ["b", "a"], "answer": "a"}, ("not clear", "choice 0 or 1")),
            ({**good, "choices": ["a", "a"], "answer": "a"}, ("not clear",)),
            ({**good, "choices": [1, 0], "answer": 0}, ("not clear", "choice 0 or 1")),
            (
                {**good, "choices": {"text": ["a", "b"], "label": [1, 2]}, "answer": 1},
                ("not clear",),
            ),
            (
                {**good, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "C"},
                ("none of",),
            ),
            ({**good, "choices": ["a"]}, ("1 choice", "at least 2")),
            ({**good, "choices": []}, ("none of the choices", "0 choices")),
            ({**good, "choices": "ab"}, ("field 'choices' is no list", "a string")),
            ({**good, "choices": ["a", None]}, ("choice 2 of field 'choices' is no text", "null")),
            ({**good, "choices": ["a", ["b"]]}, ("choice 2", "an array")),
            ({**good, "choices": ["a", "\ud800"]}, ("choice 2", "surrogate")),
            ({**good, "choices": [{"label": "A"}, {"text": "b"}]}, ("no field 'text'",)),
            ({**good, "choices": {"text": ["a", "b"], "label": ["A"]}}, ("2 texts and 1 labels",)),
            ({**good, "choices": {"label": ["A"]}}, ("no field 'text'",)),
            ({**good, "choices": {"text": "ab"}}, ("is no list",)),
            ({**good, "question": 5}, ("field 'question' is no text", "a number")),
            ({**good, "question": {"choices": ["a", "b"]}}, ("no field 'stem'",)),
            (
                {"question": "q", "context": "c", "choices": ["a", "b"], "answer": 0},
                ("no layout", "--layout"),
            ),
            ({"text": "t"}, ("no layout", "the line has: text")),
            ({}, ("the line has: nothing",)),
            (
                {"passage": "p", "question": "q", "choices": ["x", "y"], "answer": 0},
                ("yes and no",),
            ),
            ({"passage": "p", "question": "q", "answer": "maybe"}, ("none of the choices",)),
            ({"passage": "p", "question": "q", "answer": None}, ("none of the choices", "null")),
            ({"sentence": "no place", "choices": ["a", "b"], "answer": 0}, ("has no _",)),
            (
                {"sentence": "a _", "option1": "x", "option2": "y", "answer": ""},
                ("none of", "test splits"),
            ),
            (
                {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": 0},
                ("none of the choices",),
            ),
            ({"sentence": "a _ b", "option1": "2", "option2": "y", "answer": "2"}, ("not clear",)),
            ({"sentence": "a _ b", "option1": "x", "answer": "1"}, ("no field 'option2'",)),
            ({"goal": "g", "sol1": "x", "sol2": "y"}, ("no field 'answerKey'",)),
            ({"goal": "g", "sol1": "x", "sol2": "y", "label": -1}, ("none of the choices",)),
            (
                {"ctx": "c", "endings": ["x", "y"], "label": ""},
                ("none of the choices", "test splits"),
            ),
            (
                {"ctx_a": "c", "ctx_b": 4, "endings": ["x", "y"], "label": 0},
                ("'ctx_b' is no text",),
            ),
            ("[1]", ("no JSON object",)),
            ('{"question": "q"', ("no JSON",)),
        ):
            self.refuse(record, *words)
        self.refuse(good | {"passage": "p"}, "yes and no")

    def test_the_layout_that_is_told_is_taken(self):
        path = self.write("a.jsonl", [self.GOOD])
        arguments = [path, "--task", "multiple_choice", "--layout", "winogrande"]
        self.assert_stops(65, "a.jsonl:1", "no field 'sentence'", arguments=arguments, tokens=64)

    def test_usage(self):
        path = self.write("a.jsonl", [self.GOOD])
        task = [path, "--task", "multiple_choice"]
        for arguments, words in (
            ([path, "--layout", "arc"], ("--layout needs --task multiple_choice",)),
            (
                [*task, "--template", "{question}"],
                ("--template and --task multiple_choice exclude",),
            ),
            ([*task, "--pack"], ("--pack and",)),
            ([*task, "--keep-rest"], ("--keep-rest and",)),
            ([*task, "--field", "question"], ("--field and",)),
            ([*task, "--layout", "mmlu"], ("--layout",)),
            ([path, "--task", "other"], ("--task",)),
            ([self.write("a.txt", "words"), *task[1:]], ("cannot be filled from", "a.txt")),
        ):
            with self.subTest(arguments=arguments):
                self.assert_stops(64, *words, arguments=arguments)

    def test_no_item_fits(self):
        path = self.write("a.jsonl", [self.GOOD])
        self.assert_stops(
            65, "of 1 items 1 were longer", arguments=[path, "--task", "multiple_choice"], tokens=4
        )


if __name__ == "__main__":
    unittest.main()
