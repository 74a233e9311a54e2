"""Conversations in launch/tokenize.py; run as test_tokenize.py."""

import json
import os
import pathlib
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenize_case import END, Case, byte_bpe

DATA = os.environ.get("ESPALIER_TEST_DATA")
CALL = {
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": 2.5, "c": "<x> \u00e9"}},
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "max": 1.0}}}
]
LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 3?  "},
    {"role": "assistant", "content": "  5\nor five\n"},
    {"role": "user", "content": "and <|im_end|> \u4e2d\u6587?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n5"},
]
CONVERSATIONS = [
    {"messages": LONG},
    {"messages": LONG[1:3]},
    {"messages": LONG[:4]},
    {
        "messages": [
            LONG[1],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3.5"},
            {"role": "assistant", "content": "3.5"},
        ],
        "tools": TOOLS,
    },
    {"messages": [LONG[1], {"role": "assistant", "content": "5", "reasoning": "2 and 3"}]},
    {"messages": [LONG[1], LONG[2], LONG[2]]},
]
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Template(Case):
    def use_template(self, template, **settings):
        tokenizer = byte_bpe()
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        self.use(tokenizer, settings={"eos_token": END, "chat_template": template, **settings})

    def chat(self, records, *arguments, tokens=512):
        """[(text, [what counts])] of the rows."""
        path = self.write("a.jsonl", records)
        self.data = self.make(path, "--chat", "--force", *arguments, tokens=tokens)
        out = []
        for ids, n, mask in zip(self.data["tokens"], self.data["length"], self.data["loss_mask"]):
            spans, run = [], []
            for i, counts in [*zip(ids[:n].tolist(), mask), (0, 0)]:
                if counts:
                    run.append(i)
                elif run:
                    spans.append(self.tokenizer.decode(run, skip_special_tokens=False))
                    run = []
            out.append((self.tokenizer.decode(ids[:n].tolist(), skip_special_tokens=False), spans))
        return out


class Plain(Template):
    def test_spellings(self):
        self.use_template(PLAIN)
        user, told = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}
        expected = (f"<user>the cat{END}\n<assistant>sat{END}\n", [f"sat{END}"])
        sharegpt = [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "sat"}]
        for record in (
            {"messages": [user, told]},
            {"conversations": sharegpt},
            {"conversations": sharegpt, "system": "", "id": 4.0},
            {"conversation": [user, told], "score": 1},
            {"question": "the cat", "answer": "sat"},
            {"prompt": "the cat", "completion": "sat"},
            {"instruction": "the cat", "input": "", "output": "sat"},
        ):
            with self.subTest(record=record):
                self.assertEqual(self.chat([record]), [expected])
        self.assertEqual(
            self.chat([{"question": "1 + 1", "answer": 2}]),
            [(f"<user>1 + 1{END}\n<assistant>2{END}\n", [f"2{END}"])],
        )
        self.assertEqual(
            self.chat([{"instruction": "the", "input": "cat", "output": "sat"}])[0][0],
            f"<user>the\ncat{END}\n<assistant>sat{END}\n",
        )
        self.assertEqual(
            self.chat([{"system": "log", "conversations": sharegpt}])[0][0],
            f"<system>log{END}\n" + expected[0],
        )
        attributes = self.data["attributes"]
        self.assertEqual(len(attributes["chat_template_sha256"]), 64)
        self.assertNotIn("task", attributes)

    def test_every_turn_of_the_assistant_counts(self):
        self.use_template(PLAIN)
        ((_, spans),) = self.chat([{"messages": LONG}])
        self.assertEqual(spans, [f"  5\nor five\n{END}", f"<think>\nhm\n</think>\n\n5{END}"])
        self.chat([{"messages": LONG[:2]}, {"messages": LONG}])
        self.assertIn("1 without a token to predict skipped", self.printed)

    def test_answers_that_change_when_the_conversation_goes_on(self):
        """As Qwen 3: thoughts of earlier answers are left out, the last one has some, be they empty."""
        self.use_template(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
            "{% set c = m.content.split('</think>')[-1] | trim %}"
            "{% if loop.last %}<think>{{ m.content.split('</think>')[0][7:] if '</think>' in m.content }}"
            "</think>{% endif %}{{ c }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        first = {"role": "assistant", "content": "<think>the log</think>\nthe cat\nsat"}
        user = {"role": "user", "content": "two"}
        ((_, spans),) = self.chat(
            [{"messages": [user, first, user, {"role": "assistant", "content": "four"}]}]
        )
        self.assertEqual(spans, ["the cat\nsat<|im_end|>", "<think></think>four<|im_end|>"])
        ((_, spans),) = self.chat([{"messages": [user, first]}])
        self.assertEqual(spans, ["<think>the log</think>the cat\nsat<|im_end|>"])

    def test_what_is_asked_for_may_be_more_than_what_is_written(self):
        """As DeepSeek R1: the request for an answer ends with the begin of a thought."""
        self.use_template(PLAIN.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}"))
        self.assertEqual(self.chat([{"question": "the", "answer": "sat"}])[0][1], [f"sat{END}"])

    def test_marks_of_the_template(self):
        self.use_template(
            "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
            "{{ m.content }}"
            + END
            + "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
        )
        ((text, spans),) = self.chat([{"messages": [LONG[2], *LONG]}])
        self.assertEqual(spans, [f"  5\nor five\n{END}"] * 2 + [f"<think>\nhm\n</think>\n\n5{END}"])
        self.assertNotIn("\ufdd0", text)
        path = self.write("a.jsonl", [{"question": "a", "answer": "b\ufdd0"}])
        self.assert_stops(65, "a.jsonl:1", "marks", arguments=[path, "--chat", "--force"])

    def test_the_date(self):
        self.use_template("{{ strftime_now('%d %B %Y') }}" + PLAIN)
        text = self.chat([{"question": "the", "answer": "sat"}], "--chat-date", "2024-07-26")[0][0]
        self.assertTrue(text.startswith("26 July 2024<user>"))
        self.assertEqual(self.data["attributes"]["chat_date"], "2024-07-26")

    def test_which_template(self):
        self.use_template(
            [{"name": "tool_use", "template": "x"}, {"name": "default", "template": PLAIN}]
        )
        record = {"question": "the", "answer": "sat"}
        expected = f"<user>the{END}\n<assistant>sat{END}\n"
        self.assertEqual(self.chat([record])[0][0], expected)
        (self.dir / "model" / "chat_template.jinja").write_text("{{ bos_token }}" + PLAIN)
        self.use_template("never", bos_token={"content": "<|im_start|>"})
        self.assertEqual(self.chat([record])[0][0], "<|im_start|>" + expected)
        self.assertEqual(
            self.chat([record], "--bos", "<|im_end|>")[0][0], "<|im_end|><|im_start|>" + expected
        )

    def test_overlong(self):
        self.use_template(PLAIN)
        records = [{"question": "the", "answer": "cat " * 40}, {"question": "the", "answer": "cat"}]
        self.assertEqual(len(self.chat(records, tokens=48)), 1)
        self.assertIn("2 conversations, 1 overlong dropped", self.printed)
        self.assertEqual(len(self.chat(records, "--overlong", "truncate", tokens=48)), 2)

    def test_refused(self):
        self.use_template(
            "{% if messages[0].role == 'tool' %}{{ raise_exception('no tool first') }}{% endif %}"
            "{% if messages[0].content == 'call' %}{{ messages.append(1) }}{% endif %}"
            "{% if messages[0].content == 'x' %}{{ 'a' + 1 }}{% endif %}" + PLAIN
        )
        user = {"role": "user", "content": "a"}
        for record, words in (
            ({"text": "a"}, ("no conversation", "the line has: text")),
            ({"messages": []}, ("'messages' is no conversation", "empty")),
            ({"messages": "hello"}, ("'messages' is no conversation", "a string")),
            ({"messages": ["hello"]}, ("message 1 of 'messages' is no object", "a string")),
            ({"messages": [user, {"content": "b"}]}, ("message 2", "no role")),
            ({"messages": [{"role": 1, "content": "b"}]}, ("no role",)),
            ({"messages": [{"role": "user", "content": None}]}, ("content of message 1", "null")),
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
                ("an array",),
            ),
            ({"messages": [{"role": "user", "content": "\ud800"}]}, ("surrogate",)),
            ({"messages": [{"role": "assistant", "content": "b"}]}, ("begins with the assistant",)),
            ({"messages": [{"role": "tool", "content": "b"}]}, ("refuses", "no tool first")),
            ({"messages": [{"role": "user", "content": "call"}]}, ("refuses",)),
            ({"messages": [{"role": "user", "content": "x"}]}, ("refuses", "TypeError")),
            ({"messages": [user], "tools": "none"}, ("field 'tools'", "a string")),
            ({"messages": [user], "tools": "5"}, ("field 'tools'", "a number")),
            ({"messages": [user], "tools": ["a"]}, ("field 'tools'", "an array")),
            (
                '{"messages": [{"role": "user", "content": "a", "n": ' + "9" * 5000 + "}]}",
                ("too long",),
            ),
            (
                '{"messages": [{"role": "user", "content": "a", "n": '
                + "[" * 700
                + "]" * 700
                + "}]}",
                ("deep",),
            ),
            ({"question": None, "answer": "a"}, ("field 'question'", "null")),
            ('{"messages": [{"role": "user", "content": "a", "n": NaN}]}', ("NaN",)),
        ):
            with self.subTest(record=record):
                content = record if isinstance(record, str) else json.dumps(record)
                path = self.write(
                    "a.jsonl", json.dumps({"question": "a", "answer": "b"}) + "\n" + content
                )
                self.assert_stops(65, "a.jsonl:2", *words, arguments=[path, "--chat"])
        good = self.write("b.jsonl", [{"question": "a", "answer": "b"}])
        for arguments, words in (
            ([good, "--chat", "--template", "{question}"], "--template and --chat exclude"),
            ([good, "--chat", "--pack"], "--pack and --chat"),
            ([good, "--chat", "--field", "x"], "--field and --chat"),
            ([good, "--chat", "--task", "multiple_choice"], "--chat and --task"),
            ([good, "--chat-date", "2024-01-01"], "--chat-date needs --chat"),
            ([good, "--chat", "--chat-date", "26 July"], "--chat-date"),
            ([self.write("a.txt", "x"), "--chat"], "--chat cannot be filled"),
        ):
            with self.subTest(arguments=arguments):
                self.assert_stops(64, words, arguments=arguments)
        self.use_template("{% if %}")
        self.assert_stops(65, "chat template", "is wrong", arguments=[good, "--chat"])
        self.use_template("{{ messages | length }}")
        self.assert_stops(65, "cannot be told", arguments=[good, "--chat"])
        self.use_template("{{ ''.__class__.__mro__ }}" + PLAIN)
        self.assert_stops(65, "refuses", arguments=[good, "--chat"])
        self.use_template(None)
        self.assert_stops(66, "no chat template", arguments=[good, "--chat"])


class Transformers(Template):
    """Against transformers' own apply_chat_template."""

    @classmethod
    def setUpClass(cls):
        if not DATA:
            raise unittest.SkipTest("ESPALIER_TEST_DATA is not set")
        try:
            import transformers
        except ImportError as error:
            raise unittest.SkipTest(f"transformers is not installed ({error})")
        cls.load = staticmethod(transformers.AutoTokenizer.from_pretrained)

    def compare(self, folder, records):
        model = self.dir / "model"
        shutil.rmtree(model)
        shutil.copytree(folder, model)
        theirs = self.load(str(model))
        data = self.make(self.write("a.jsonl", records), "--chat", "--force", tokens=1024)
        for record, row, n, mask in zip(
            records, data["tokens"], data["length"], data["loss_mask"], strict=True
        ):
            # transformers gives templates `reasoning` under the name they know from version 5 on.
            messages = [
                {"reasoning_content": m["reasoning"], **m} if "reasoning" in m else m
                for m in record["messages"]
            ]
            ids = theirs.apply_chat_template(
                messages, tools=record.get("tools"), return_dict=True
            )["input_ids"]
            self.assertEqual(row[:n].tolist(), ids, record)
            yield theirs, mask[:n].tolist(), ids

    def test_tokens_and_what_counts(self):
        for name in ("qwen2.5", "minimind6400"):
            for record, (theirs, mask, ids) in zip(
                CONVERSATIONS, self.compare(pathlib.Path(DATA, "tokenizers", name), CONVERSATIONS)
            ):
                # A turn, by the tokens themselves: behind <|im_start|>assistant and its line end, through
                # <|im_end|>. The template of minimind asks for answers with an empty thought.
                start, end = theirs.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
                header = theirs("assistant\n", add_special_tokens=False)["input_ids"]
                think = theirs("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
                expected, at = [0] * len(ids), 0
                while at < len(ids):
                    if ids[at] == start and ids[at + 1 : at + 1 + len(header)] == header:
                        at += 1 + len(header)
                        if name == "minimind6400":
                            asked = [a == b for a, b in zip(ids[at:], think)]
                            at += asked.index(False) if False in asked else len(think)
                        while True:
                            expected[at] = 1
                            at += 1
                            if ids[at - 1] == end:
                                break
                    else:
                        at += 1
                with self.subTest(name=name, record=record):
                    self.assertEqual(mask, expected)

    def test_marks_of_a_template(self):
        folder = self.dir / "marked"
        shutil.copytree(pathlib.Path(DATA, "tokenizers", "minimind6400"), folder)
        (folder / "chat_template.jinja").write_text(
            "{{ bos_token }}{%- for m in messages %}\n  {%- if m.role == 'assistant' %}{%- generation %}"
            "{{ m.content }}{{ eos_token }}{% endgeneration -%}\n  {%- else %}{{ m | tojson }}{% endif %}"
            "{%- if loop.index > 8 %}{% break %}{% endif %}{% endfor %}"
        )
        records = [{"messages": LONG}, {"messages": LONG[1:3]}]
        for record, (theirs, mask, ids) in zip(records, self.compare(folder, records)):
            out = theirs.apply_chat_template(
                record["messages"],
                return_dict=True,
                tokenize=True,
                return_assistant_tokens_mask=True,
            )
            self.assertEqual(mask, out["assistant_masks"])
            self.assertTrue(any(out["assistant_masks"]))


if __name__ == "__main__":
    unittest.main()
