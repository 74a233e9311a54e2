"""Multiple choice: the layouts of public data sets, and the texts that lm-evaluation-harness 0.4.13
makes of them without examples in the prompt."""

import json
import re
import string
from dataclasses import dataclass

from espalier_launch.stop import BAD_CONTENT, Stop

from .documents import Literal, name_of, plain_text

MOST_CHOICES = (1 << 15) - 1  # /option is int16
ANSWERS = ("answerKey", "answer_key", "answer", "label", "gold", "answer_index", "answer_idx")
COUNTED_FROM_0 = ("label", "gold", "answer_index", "answer_idx")
WORDS = {"no": 0, "false": 0, "yes": 1, "true": 1}


@dataclass
class Option:
    context: str
    continuation: str
    characters: int  # of the option's text, by which the harness divides in acc_norm


@dataclass
class Item:
    options: list
    right: int
    layout: str = ""

    def blank(self):
        """Whether it asks nothing, or has an option without text."""
        return any(not o.context.strip() or not o.continuation.strip() for o in self.options)


class Layout:
    """How a data set writes its items, and which fields tell."""

    def __init__(self, name, signs, make):
        self.name, self.signs, self.make = name, signs, make

    def told_by(self, record):
        return any(fields <= record.keys() for fields in self.signs)


def layout_of(record, name):
    """The layout called `name`, or the one that the fields of the record tell; None: no one."""
    if name != "auto":
        return next(layout for layout in LAYOUTS if layout.name == name)
    found = next((layout for layout in LAYOUTS if layout.told_by(record)), None)
    if found is not None and found.name == "hellaswag" and "question" in record:
        return None  # a context with a question behind it: another kind of item
    return found


def item_of(record, name, place):
    layout = layout_of(record, name)
    if layout is None:
        raise Stop(
            BAD_CONTENT,
            f"{place}: no layout of multiple choice that is known",
            f"the line has: {', '.join(record) or 'nothing'}",
            "say which it is with --layout, or name the fields as in docs/file-formats.md",
        )
    item = layout.make(record, place)
    item.layout = layout.name
    count = len(item.options)
    if not 2 <= count <= MOST_CHOICES:
        raise Stop(
            BAD_CONTENT,
            f"{place}: {count} choice{'' if count == 1 else 's'}",
            f"an item has at least 2 and at most {MOST_CHOICES:,}",
            "repair the line or take it out",
        )
    return item


# ---- what the fields hold ------------------------------------------------------------------------


def first_of(record, names, place):
    """(name, value) of the first of these fields that the record has."""
    for name in names:
        if name in record:
            return name, record[name]
    raise Stop(
        BAD_CONTENT,
        f"{place}: no field '{names[0]}'" + (" or another answer" if names is ANSWERS else ""),
        f"the line has: {', '.join(record) or 'nothing'}",
        "give data with answers (the test splits of some sets have none), or name the right --layout",
    )


def text_of(record, names, place):
    name, value = first_of(record, names, place)
    return plain_text(value, f"field '{name}'", place)


def shown(value):
    return str(value) if isinstance(value, Literal) else json.dumps(value)[:60]


def listed(value, what, place):
    if not isinstance(value, list):
        raise Stop(
            BAD_CONTENT,
            f"{place}: {what} is no list",
            f"it is {name_of(value)}",
            'write it as ["...", "..."] or {"text": ["...", "..."], "label": ["A", "B"]}',
        )
    return value


def choices_of(record, name, place):
    """(texts, labels or None) of a list of texts, a list of {text, label}, or {text: [], label: []}."""
    value = first_of(record, (name,), place)[1]
    what, labels = f"field '{name}'", None
    if isinstance(value, dict):
        texts = listed(first_of(value, ("text", "texts"), f"{place}: {what}")[1], what, place)
        labels = listed(value.get("label", value.get("labels", [])), f"'label' of {what}", place)
    else:
        texts = listed(value, what, place)
        if texts and all(isinstance(choice, dict) for choice in texts):
            labels = [choice.get("label", "") for choice in texts]
            texts = [first_of(choice, ("text",), f"{place}: {what}")[1] for choice in texts]
    for i, text in enumerate(texts, 1):
        plain_text(text, f"choice {i} of {what}", place, numbers=True)
    labels = [
        plain_text(label, f"a label of {what}", place, numbers=True) for label in labels or []
    ]
    if labels and len(labels) != len(texts):
        raise Stop(
            BAD_CONTENT,
            f"{place}: {what} has {len(texts)} texts and {len(labels)} labels",
            "every choice has one label",
            "repair the line",
        )
    return texts, [label.strip() for label in labels]


def readings(name, value, texts, labels):
    """The choices that an answer may mean. JSON's numbers count from 0; so do digits in a string
    under the names where data sets do; elsewhere the digit could count from 1 as well."""
    word = str(value).strip()
    count = len(texts)
    digits = {int(word)} if word.isdecimal() and len(word) < 6 else set()
    found = {i for i, label in enumerate(labels) if label == word}
    if isinstance(value, Literal):
        # Of choices that are numbers themselves, the answer may be the number or the place.
        numbers = {i for i, text in enumerate(texts) if isinstance(text, Literal) and text == word}
        found |= digits | numbers
    elif not found:
        found = {i for i, text in enumerate(texts) if text.strip() == word}
        if len(word) == 1 and word in string.ascii_letters and not labels:
            found.add(ord(word.upper()) - ord("A"))
        found |= digits if name in COUNTED_FROM_0 else digits | {i - 1 for i in digits}
    return {i for i in found if 0 <= i < count}


def the_one(found, name, value, count, place):
    if len(found) == 1:
        return found.pop()
    if not found:
        raise Stop(
            BAD_CONTENT,
            f"{place}: the answer is none of the choices",
            f"field '{name}' is {shown(value)}, there are {count} choices",
            "give data with answers (the test splits of some sets have none), or repair the line",
        )
    places = " or ".join(str(i) for i in sorted(found))
    raise Stop(
        BAD_CONTENT,
        f"{place}: the answer is not clear",
        f"field '{name}' is {shown(value)}, which may be choice {places}, counted from 0",
        "write a number that counts from 0, and no labels beside it",
    )


def right_of(record, texts, labels, place):
    name, value = first_of(record, ANSWERS, place)
    if type(value) not in (str, Literal):
        raise Stop(
            BAD_CONTENT,
            f"{place}: field '{name}' is no answer",
            f"it is {name_of(value)}",
            "give the number, the letter, the label or the text of the right choice",
        )
    return the_one(readings(name, value, texts, labels), name, value, len(texts), place)


def behind(context, texts, right):
    """An item whose options follow one context, with a space between."""
    return Item([Option(context, f" {text}", len(text)) for text in texts], right)


# ---- the layouts ---------------------------------------------------------------------------------


def stem_and_choices(record, names, place):
    """(question, texts, right) of question and choices, also one inside the other as first published."""
    name, question = first_of(record, names, place)
    inner = record
    if isinstance(question, dict):
        inner, question = question, first_of(question, ("stem",), f"{place}: field '{name}'")[1]
    question = plain_text(question, f"field '{name}'", place)
    texts, labels = choices_of(inner, "choices", place)
    return question, texts, right_of(record, texts, labels, place)


def make_arc(record, place):
    question, texts, right = stem_and_choices(record, ("question", "question_stem"), place)
    return behind(f"Question: {question}\nAnswer:", texts, right)


def make_openbookqa(record, place):
    question, texts, right = stem_and_choices(record, ("question_stem", "question"), place)
    return behind(question, texts, right)


def make_piqa(record, place):
    if "sol1" not in record:
        question, texts, right = stem_and_choices(record, ("goal", "question"), place)
    else:
        question = text_of(record, ("goal", "question"), place)
        texts = [text_of(record, (name,), place) for name in ("sol1", "sol2")]
        right = right_of(record, texts, [], place)
    return behind(f"Question: {question}\nAnswer:", texts, right)


def cleaned(text):
    """HellaSwag's marks of WikiHow out."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def make_hellaswag(record, place):
    if "endings" not in record:  # a context that was cleaned already
        texts, labels = choices_of(record, "choices", place)
        context = text_of(record, ("context", "ctx", "question"), place)
        return behind(context, texts, right_of(record, texts, labels, place))
    if "ctx_a" in record:
        second = text_of(record, ("ctx_b",), place) if record.get("ctx_b") is not None else ""
        context = f"{text_of(record, ('ctx_a',), place)} {second.capitalize()}"
    else:
        context = text_of(record, ("ctx", "context"), place)
    if "activity_label" in record:
        context = f"{text_of(record, ('activity_label',), place)}: {context}"
    texts, labels = choices_of(record, "endings", place)
    texts = [cleaned(text) for text in texts]
    return behind(cleaned(context), texts, right_of(record, texts, labels, place))


def make_medqa(record, place):
    """The endings stand in the prompt, and their letters are the options."""
    names = [name for name in (f"ending{i}" for i in range(len(string.ascii_uppercase))) if name in record]
    texts = [text_of(record, (name,), place) for name in names]
    letters = list(string.ascii_uppercase[: len(texts)])
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip(letters, texts))
    question = text_of(record, ("sent1",), place)
    right = right_of(record, texts, letters, place)
    return behind(f"Question: {question}\n{lines}Answer:", letters, right)


def make_winogrande(record, place):
    """Each option is put into the sentence, and what follows is the continuation of both."""
    sentence = text_of(record, ("sentence",), place)
    if "option1" in record:
        texts = [text_of(record, (name,), place) for name in ("option1", "option2")]
        name, value = first_of(record, ANSWERS, place)
        word = str(value).strip()
        found = {i for i, text in enumerate(texts) if word in (str(i + 1), text.strip())}
        right = the_one(found, name, value, len(texts), place)
    else:
        texts, labels = choices_of(record, "choices", place)
        right = right_of(record, texts, labels, place)
    at = sentence.find("_")
    if at < 0:
        raise Stop(
            BAD_CONTENT,
            f"{place}: field 'sentence' has no _",
            "the options belong in its place",
            "repair the line, or name the right --layout",
        )
    rest = f" {sentence[at + 1 :].strip()}"
    contexts = [sentence[:at] + text for text in texts]
    return Item([Option(context, rest, len(context)) for context in contexts], right)


def make_boolq(record, place):
    passage, question = (text_of(record, (name,), place) for name in ("passage", "question"))
    context, texts = f"{passage}\nQuestion: {question}?\nAnswer:", ["no", "yes"]
    name, value = first_of(record, ANSWERS, place)
    if "choices" in record:
        given, labels = choices_of(record, "choices", place)
        words = [text.strip().lower() for text in given]
        if sorted(WORDS.get(word, -1) for word in words) != [0, 1]:
            raise Stop(
                BAD_CONTENT,
                f"{place}: the choices are not yes and no",
                "a passage with a question is read as BoolQ",
                "name the right --layout",
            )
        value = words[right_of(record, given, labels, place)]
    if isinstance(value, bool):
        value = str(value)
    word = str(value).strip().lower()
    found = {WORDS[word]} if word in WORDS else {int(word)} if word in ("0", "1") else set()
    return behind(context, texts, the_one(found, name, value, 2, place))


LAYOUTS = (
    Layout("boolq", ({"passage", "question"},), make_boolq),
    Layout("winogrande", ({"sentence", "option1"}, {"sentence", "choices"}), make_winogrande),
    Layout("piqa", ({"goal", "sol1"}, {"goal", "choices"}), make_piqa),
    Layout(
        "hellaswag",
        ({"ctx", "endings"}, {"ctx_a", "endings"}, {"context", "endings"}, {"context", "choices"}),
        make_hellaswag,
    ),
    Layout("medqa", ({"sent1", "ending0"},), make_medqa),
    Layout("openbookqa", ({"question_stem", "choices"},), make_openbookqa),
    Layout("arc", ({"question", "choices"}, {"question", "answerKey"}), make_arc),
)
NAMES = ("auto", *sorted(layout.name for layout in LAYOUTS))
