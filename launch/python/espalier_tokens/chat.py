"""Conversations as the model's own chat template writes them, and what of them the assistant says."""

import datetime
import hashlib
import json
import os

from espalier_launch.stop import BAD_CONTENT, NO_INPUT, UNAVAILABLE, Stop

from .documents import Literal, NoNumber, name_of, plain_text, read_json

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue")
PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("problem", "solution"),
    ("query", "response"),
    ("input", "output"),
)
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
}
REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # what data sets call it, the usual name first
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
OPEN, CLOSE = (
    "\ufdd0",
    "\ufdd1",
)  # around what a template marks as generated; no characters of any text


def is_conversation(record):
    return any(name in record for name in MESSAGES) or any(
        question in record and answer in record for question, answer in PAIRS
    )


# ---- from records to messages --------------------------------------------------------------------


def plain(value, place):
    """A value with numbers in place of how they were written, as a template expects them."""
    if isinstance(value, NoNumber):
        raise Stop(
            BAD_CONTENT,
            f"{place}: a message holds {value}",
            "JSON knows no such number",
            "repair it",
        )
    if isinstance(value, Literal):
        try:
            return json.loads(value)
        except ValueError as error:  # thousands of digits
            raise wrong(place, "a message holds a number that is too long", str(error), "repair it")
    if isinstance(value, dict):
        return {key: plain(item, place) for key, item in value.items()}
    return [plain(item, place) for item in value] if isinstance(value, list) else value


def wrong(place, what, why, do):
    return Stop(BAD_CONTENT, f"{place}: {what}", why, do)


def message_of(raw, what, place):
    """A message with role and content, under whatever names; fields that are null are left out, and
    reasoning has every name that templates know."""
    if not isinstance(raw, dict):
        raise wrong(
            place,
            f"{what} is no object",
            f"it is {name_of(raw)}",
            'write {"role": ..., "content": ...}',
        )
    role = raw.get("role", raw.get("from"))
    if type(role) is not str:
        raise wrong(
            place,
            f"{what} has no role",
            f"it has: {', '.join(raw) or 'nothing'}",
            'write {"role": "user", "content": ...} or {"from": "human", "value": ...}',
        )
    message = {
        k: plain(v, place) for k, v in raw.items() if v is not None and k not in ("from", "value")
    }
    message["role"] = ROLES.get(role, role)
    content = raw.get("content", raw.get("value"))
    if content is not None or not raw.get("tool_calls"):
        message["content"] = plain_text(content, f"the content of {what}", place)
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def messages_of(record, place):
    name = next((name for name in MESSAGES if name in record), None)
    if name is None:
        messages = pair_of(record, place)
    else:
        raw = record[name]
        if not isinstance(raw, list) or not raw:
            why = "it is empty" if raw == [] else f"it is {name_of(raw)}"
            raise wrong(
                place, f"field '{name}' is no conversation", why, "write a list of messages"
            )
        messages = [message_of(m, f"message {i} of '{name}'", place) for i, m in enumerate(raw, 1)]
    system = record.get("system")
    if type(system) is str and system.strip() and messages[0]["role"] != "system":
        messages.insert(
            0, {"role": "system", "content": plain_text(system, "field 'system'", place)}
        )
    return messages


def pair_of(record, place):
    for question, answer in PAIRS:
        if question in record and answer in record:
            asked = plain_text(record[question], f"field '{question}'", place)
            if question == "instruction" and str(record.get("input") or "").strip():
                asked += "\n" + plain_text(record["input"], "field 'input'", place)
            told = plain_text(record[answer], f"field '{answer}'", place, numbers=True)
            return [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    raise wrong(
        place,
        "no conversation",
        f"the line has: {', '.join(record) or 'nothing'}",
        "give a field 'messages', or question and answer (docs/file-formats.md)",
    )


def tools_of(record, place):
    tools = record.get("tools")
    if type(tools) is str:
        try:
            tools = read_json(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            pass  # it stays a text
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(t, dict) for t in tools)
    ):
        raise wrong(
            place,
            "field 'tools' is no list of objects",
            f"it is {name_of(tools)}",
            "repair the line",
        )
    return plain(tools, place) or None


# ---- the template --------------------------------------------------------------------------------


def generation_tag():
    """The extension for {% generation %}, by which a template marks what the assistant says."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return f"{OPEN}{caller()}{CLOSE}"

    return Generation


def environment(date):
    """Where transformers lets templates run: a sandbox, with the same filters and functions."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[generation_tag(), "jinja2.ext.loopcontrols"],
    )
    made.filters["tojson"] = tojson  # that of Jinja escapes what HTML does not like
    made.globals.update(raise_exception=raise_exception, strftime_now=date.strftime)
    return made


def source_of(coder):
    """(text of the template, the file it is in); of several that called default."""
    path = os.path.join(coder.folder, "chat_template.jinja")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(), path
    except (OSError, ValueError):
        pass
    path = os.path.join(coder.folder, "tokenizer_config.json")
    found = coder.settings.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise Stop(
            NO_INPUT,
            "the model has no chat template",
            f"neither chat_template.jinja nor chat_template in tokenizer_config.json is in '{coder.folder}'",
            "use a model that was made for chat, or --template instead of --chat",
        )
    return found, path


class Conversations:
    """Makes of a record the text of its conversation."""

    def __init__(self, coder, date):
        try:
            import jinja2
        except ImportError:
            raise Stop(
                UNAVAILABLE,
                "the Python package jinja2 is missing",
                "chat templates are written for it",
                "run launch/setup.sh and use .venv/bin/python",
            )
        self.errors = jinja2.TemplateError
        source, self.path = source_of(coder)
        self.sha256, self.date = hashlib.sha256(source.encode()).hexdigest(), date
        try:
            self.template = environment(date).from_string(source)
        except jinja2.TemplateError as error:
            raise Stop(
                BAD_CONTENT, f"the chat template in '{self.path}' is wrong", str(error), "repair it"
            )
        self.words = coder.special_words(SPECIAL)
        self.ends = [coder.plain.id_to_token(i) for i in sorted(coder.special)]

    def text(self, record, place):
        """(text, [(begin, end)] of what the assistant says)"""
        try:
            messages, tools = messages_of(record, place), tools_of(record, place)
        except RecursionError:
            why = "lists and objects stand one inside the other hundreds of times"
            raise wrong(place, "the conversation is nested too deep", why, "take the line out")
        text = self._rendered(messages, tools, place)
        if OPEN in text:
            return self._unmarked(text, place)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                spans.append(self._turn(messages, i, tools, text, place))
        return text, spans

    def _rendered(self, messages, tools, place, prompt=False):
        try:
            return self.template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self.words,
            )
        except self.errors as error:
            why = str(error) or type(error).__name__
        except Exception as error:  # what a template does with a value that it did not expect
            why = f"{type(error).__name__}: {error}"
        raise wrong(
            place,
            "the chat template refuses the conversation",
            why,
            "repair the line or take it out",
        )

    def _unmarked(self, text, place):
        out, spans = "", []
        for i, part in enumerate(text.split(OPEN)):
            said, close, rest = part.partition(CLOSE)
            if i and not close or CLOSE in rest or (not i and close):
                raise wrong(
                    place,
                    "the template's marks around what is generated are no pairs",
                    "they are one inside the other, or a message holds U+FDD0 or U+FDD1",
                    "repair the line",
                )
            if i:
                spans.append((len(out), len(out) + len(said)))
            out += said + rest
        return out, spans

    def _turn(self, messages, i, tools, text, place):
        """(begin, end) of the i-th message: behind what the template writes to ask for it, up to the
        token that ends it."""
        if i == 0:
            raise wrong(
                place,
                "the conversation begins with the assistant",
                "it answers nothing",
                "put a message of the user before it",
            )
        before = self._rendered(messages[:i], tools, place)
        asked = self._rendered(messages[:i], tools, place, prompt=True)
        begin = len(os.path.commonprefix([asked, text]))
        alone = self._rendered(messages[: i + 1], tools, place)
        end = self._end(messages[i], alone, text, begin)
        if begin < len(before) or not text.startswith(before) or end is None:
            raise wrong(
                place,
                f"what message {i + 1} adds to the conversation cannot be told",
                "the chat template writes its begin otherwise when it goes on",
                "give conversations with one answer, or a template with {% generation %}",
            )
        said = text[begin:end].rstrip()  # a line end behind the last token is never waited for
        return (begin, begin + len(said)) if said.endswith(tuple(self.ends)) else (begin, end)

    def _end(self, message, alone, text, begin):
        if text.startswith(alone) and len(alone) > begin:
            return len(alone)
        # A template may write an answer otherwise once it is not the last, without its thoughts for
        # example: then it ends with what followed its last words when it was the last.
        words = (message.get("content") or "").strip().rpartition("\n")[2]
        closing = alone.rpartition(words)[2] if words else ""
        at = text.find(closing, begin) if closing.strip() else -1
        return at + len(closing) if at >= 0 and words in text[begin:at] else None


def today():
    return datetime.datetime.now()
