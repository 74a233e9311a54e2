#!/usr/bin/env python3
"""Writes the text the small test model learns from: three domains that really differ.

  prose  short stories and descriptions: names, pronouns, colours and places are carried through a
         paragraph, verbs agree with their subjects, plurals with their numbers
  math   questions with worked answers: column addition and subtraction, products by parts,
         comparisons, sequences, word problems; every result is computed, none is written down
  code   functions of a small imperative language: nested blocks, variables used as they were named,
         calls that fit the definition above them, results that the interpreter below confirms

Everything comes from the word lists and grammars of this file and from a seed; the same seed gives
the same bytes on every machine. No text occurs in two splits.

  generate_text.py --out DIR [--seed 0] [--train 40000] [--heldout-bytes 140000] ...

writes DIR/{prose,math,code}.{train,calibration,heldout}.jsonl, one {"text": ...} a line; math lines
also hold "question" and "answer", where text = question + "\\n" + answer.
"""

import argparse
import json
import pathlib
import random

DOMAINS = ("prose", "math", "code")

# ------------------------------------------------------------------------------------------ prose

GIRLS = ["Mara", "Lina", "Tess", "Ruth", "Nora", "Ida", "Clara", "Vera", "Edith", "Anna", "Dora", "June"]
BOYS = ["Tom", "Emil", "Hugo", "Paul", "Oscar", "Finn", "Karl", "Ben", "Otto", "Max", "Leo", "Sam"]
ANIMALS = ["fox", "goose", "cat", "dog", "hare", "crow", "mole", "bear", "owl", "goat", "mouse", "duck"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "golden", "silver"]
THINGS = ["kite", "lamp", "boat", "drum", "scarf", "key", "basket", "clock", "bottle", "coat", "ladder",
          "mirror", "rope", "bell", "box", "map", "spoon", "hat", "book", "flute"]
PLACES = ["the old mill", "the harbour", "the market", "the library", "the orchard", "the bridge",
          "the station", "the garden", "the lighthouse", "the school", "the barn", "the castle"]
ROOMS = ["kitchen", "attic", "cellar", "workshop", "hall", "study", "shed", "bakery"]
JOBS = ["baker", "sailor", "teacher", "farmer", "miller", "doctor", "painter", "smith", "gardener"]
MOODS = ["happy", "tired", "proud", "worried", "curious", "angry", "calm", "lonely"]
WEATHER = {
    "rainy": ("It rained", "umbrella", "the streets were wet"),
    "snowy": ("Snow fell", "thick coat", "the roofs were white"),
    "sunny": ("The sun shone", "straw hat", "the stones were warm"),
    "windy": ("The wind blew", "long scarf", "the leaves were flying"),
    "foggy": ("Fog came down", "small lantern", "the hills were hidden"),
}
TIMES = ["in the morning", "at noon", "in the evening", "before breakfast", "after school", "late at night"]
PARTS = ["on the table", "under the bench", "beside the door", "near the window", "behind the stove",
         "on the shelf", "in the corner", "above the chest"]
PLURALS = {"apple": "apples", "egg": "eggs", "fish": "fish", "stone": "stones", "coin": "coins",
           "loaf": "loaves", "berry": "berries", "candle": "candles", "leaf": "leaves", "plum": "plums"}
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
           "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
           "twenty"]


class Person:
    """Someone a paragraph is about: a name with the pronouns that belong to it."""

    def __init__(self, rng, other=None):
        girl = rng.random() < 0.5
        names = [n for n in (GIRLS if girl else BOYS) if other is None or n != other.name]
        self.name = rng.choice(names)
        self.he, self.him, self.his = ("she", "her", "her") if girl else ("he", "him", "his")
        self.He = self.he.capitalize()
        self.His = self.his.capitalize()
        self.child = "girl" if girl else "boy"


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def counted(number, noun):
    return f"{NUMBERS[number]} {noun if number == 1 else PLURALS[noun]}"


def story_of_loss(rng):
    a = Person(rng)
    b = Person(rng, a)
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    lost, found = rng.sample(PLACES, 2)
    mood = rng.choice(MOODS)
    lines = [
        rng.choice([
            f"{a.name} had {article(colour)} {thing}, and {a.he} took it everywhere.",
            f"There was a {a.child} called {a.name} who loved {a.his} {colour} {thing}.",
            f"{a.name} was given {article(colour)} {thing} by {a.his} grandfather.",
        ]),
        rng.choice([
            f"One day {a.he} went to {lost} and left the {thing} there.",
            f"But on the way to {lost} {a.he} lost the {colour} {thing}.",
            f"{rng.choice(TIMES).capitalize()} {a.he} walked to {lost}, and when {a.he} came home the {thing} was gone.",
        ]),
        f"{a.name} was {mood} and asked {a.his} friend {b.name} for help.",
        rng.choice([
            f"{b.name} looked at {lost} first, but {b.he} found nothing there.",
            f'"Did you look at {found}?" said {b.name}.',
            f"{b.He} said that someone at {found} might have seen it.",
        ]),
        rng.choice([
            f"Together they went to {found}, and there was the {colour} {thing}.",
            f"At {found} {b.name} saw something {colour}: it was the {thing}.",
        ]),
        rng.choice([
            f'{a.name} thanked {b.name} and was not {mood} any more.',
            f'"Thank you, {b.name}," said {a.name}, and {a.he} held the {thing} in {a.his} hands.',
            f"{a.name} never took the {thing} to {lost} again.",
        ]),
    ]
    return " ".join(lines)


def story_of_animals(rng):
    first, second = rng.sample(ANIMALS, 2)
    place = rng.choice(PLACES)
    mood = rng.choice(MOODS)
    noun = rng.choice(list(PLURALS))
    n = rng.randint(2, 12)
    given = rng.randint(1, n - 1)
    lines = [
        f"{article(first).capitalize()} and {article(second)} lived near {place}.",
        rng.choice([
            f"The {first} was always {mood}, but the {second} was not.",
            f"Every day the {first} met the {second} and they talked for a long time.",
        ]),
        f"The {first} had {counted(n, noun)}, and the {second} had none.",
        rng.choice([
            f'"Will you share with me?" asked the {second}.',
            f"The {second} was hungry and sat down beside the {first}.",
        ]),
        f"So the {first} gave {counted(given, noun)} to the {second}.",
        f"Now the {first} had {counted(n - given, noun)} and the {second} had {counted(given, noun)}.",
        rng.choice([
            f"They stayed friends, and {place} was quiet again.",
            f"From then on the {second} brought something to the {first} every week.",
        ]),
    ]
    return " ".join(lines)


def description_of_room(rng):
    owner = Person(rng)
    job = rng.choice(JOBS)
    room = rng.choice(ROOMS)
    items = rng.sample(THINGS, 3)
    colours = rng.sample(COLOURS, 3)
    parts = rng.sample(PARTS, 3)
    lines = [f"{owner.name} the {job} keeps {owner.his} things in the {room}."]
    for thing, colour, part in zip(items, colours, parts):
        lines.append(rng.choice([
            f"There is {article(colour)} {thing} {part}.",
            f"{part.capitalize()} stands {article(colour)} {thing}.",
            f"{owner.He} puts the {colour} {thing} {part}.",
        ]))
    asked = rng.randrange(3)
    lines.append(rng.choice([
        f"When {owner.name} needs the {items[asked]}, {owner.he} looks {parts[asked]}.",
        f"The {items[asked]} is {colours[asked]}, and it is {parts[asked]}.",
        f"If you want the {colours[asked]} {items[asked]}, look {parts[asked]}.",
    ]))
    lines.append(f"Nobody but {owner.name} may enter the {room}.")
    return " ".join(lines)


def story_of_weather(rng):
    a = Person(rng)
    kind = rng.choice(list(WEATHER))
    began, wear, seen = WEATHER[kind]
    place = rng.choice(PLACES)
    job = rng.choice(JOBS)
    lines = [
        f"{began} {rng.choice(TIMES)}, and {seen}.",
        f"{a.name} took {a.his} {wear} and went to {place}.",
        rng.choice([
            f"On such a {kind} day only the {job} was there.",
            f"The {job} at {place} did not like the {kind} day.",
        ]),
        rng.choice([
            f'"Why do you carry your {wear}?" asked the {job}. "Because it is {kind}," said {a.name}.',
            f'The {job} saw the {wear} and laughed, but {a.name} was glad to have it.',
        ]),
        f"{a.He} stayed until the evening, and then {a.he} took the {wear} and walked home from {place}.",
    ]
    return " ".join(lines)


def story_of_work(rng):
    a = Person(rng)
    b = Person(rng, a)
    job = rng.choice(JOBS)
    noun = rng.choice(list(PLURALS))
    n, more = rng.randint(2, 10), rng.randint(1, 10)
    days = rng.sample(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"], 2)
    lines = [
        f"{a.name} and {b.name} work for the {job}.",
        f"On {days[0]} {a.name} brings {counted(n, noun)}, and on {days[1]} {b.name} brings {counted(more, noun)}.",
        f"The {job} counts them: {counted(n, noun)} from {a.name} and {counted(more, noun)} from {b.name} "
        f"make {counted(n + more, noun)}.",
        rng.choice([
            f"{b.name} comes on {days[1]} because {b.he} likes the {job} best on that day.",
            f"{a.name} comes on {days[0]} and {b.name} does not.",
        ]),
        rng.choice([
            f"The {job} pays both of them, and they are {rng.choice(MOODS)}.",
            f'"Come again on {days[0]}, {a.name}," says the {job}.',
        ]),
    ]
    return " ".join(lines)


PROSE = (story_of_loss, story_of_animals, description_of_room, story_of_weather, story_of_work)


def prose(rng):
    return {"text": rng.choice(PROSE)(rng)}


# ------------------------------------------------------------------------------------------- math

GOODS = ["apples", "pens", "books", "coins", "cards", "stamps", "shells", "nails", "tickets", "cups"]


def question_answer(question, answer):
    return {"text": f"{question}\n{answer}", "question": question, "answer": answer}


def add_steps(x, y):
    """The column addition of x and y, from the ones upward."""
    steps, carry, place = [], 0, 0
    a, b = str(x)[::-1], str(y)[::-1]
    while place < max(len(a), len(b)):
        p = int(a[place]) if place < len(a) else 0
        q = int(b[place]) if place < len(b) else 0
        total = p + q + carry
        term = f"{p} + {q} + {carry}" if carry else f"{p} + {q}"
        carry = total // 10
        steps.append(f"{term} = {total}, write {total % 10}" + (f", carry {carry}" if carry else ""))
        place += 1
    if carry:
        steps.append(f"write {carry}")
    return "; ".join(steps)


def addition(rng):
    top = rng.choice([99, 999, 999])
    x, y = rng.randint(2, top), rng.randint(2, top)
    return question_answer(f"What is {x} + {y}?", f"{add_steps(x, y)}. The sum is {x + y}.")


def subtract_steps(x, y):
    """The column subtraction x - y for x >= y, from the ones upward."""
    steps, borrow = [], 0
    a, b = str(x)[::-1], str(y)[::-1]
    for place, digit in enumerate(a):
        p = int(digit) - borrow
        q = int(b[place]) if place < len(b) else 0
        borrow = 1 if p < q else 0
        shown = p + 10 * borrow
        steps.append(f"{shown} - {q} = {shown - q}" + (", borrow 1" if borrow else ""))
    return "; ".join(steps)


def subtraction(rng):
    top = rng.choice([99, 999, 999])
    x, y = sorted((rng.randint(2, top), rng.randint(2, top)), reverse=True)
    return question_answer(f"What is {x} - {y}?", f"{subtract_steps(x, y)}. The difference is {x - y}.")


def product(rng):
    x, y = rng.randint(11, 99), rng.randint(2, 9)
    tens, ones = x // 10 * 10, x % 10
    return question_answer(
        f"What is {x} * {y}?",
        f"{tens} * {y} = {tens * y}; {ones} * {y} = {ones * y}; {tens * y} + {ones * y} = {x * y}. "
        f"The product is {x * y}.")


def comparison(rng):
    x, y = rng.sample(range(10, 1000), 2)
    word = rng.choice(["larger", "smaller"])
    best = max(x, y) if word == "larger" else min(x, y)
    other = x + y - best
    sign = ">" if word == "larger" else "<"
    return question_answer(f"Which number is {word}, {x} or {y}?",
                           f"{best} {sign} {other}. The {word} number is {best}.")


def sequence(rng):
    start, step = rng.randint(1, 60), rng.randint(2, 9)
    terms = [start + i * step for i in range(5)]
    shown = ", ".join(map(str, terms[:4]))
    return question_answer(f"How does the sequence {shown} go on?",
                           f"{terms[1]} - {terms[0]} = {step}; {terms[3]} + {step} = {terms[4]}. The next term is {terms[4]}.")


def order(rng):
    values = rng.sample(range(10, 100), 4)
    up = rng.random() < 0.5
    word = "rising" if up else "falling"
    done = sorted(values, reverse=not up)
    return question_answer(f"Write {', '.join(map(str, values))} in {word} order.",
                           f"The {word} order is {', '.join(map(str, done))}.")


def problem_of_giving(rng):
    a, b = Person(rng), None
    b = Person(rng, a)
    goods = rng.choice(GOODS)
    n = rng.randint(10, 99)
    k = rng.randint(2, n - 1)
    if rng.random() < 0.5:
        question = rng.choice([
            f"{a.name} has {n} {goods}. {a.He} gives {k} {goods} to {b.name}. How many {goods} does {a.name} have now?",
            f"There are {n} {goods} in a box. {b.name} takes {k} of them. How many {goods} are left?",
        ])
        owner = f"{a.name} has {n - k} {goods}" if question.startswith(a.name) else f"{n - k} {goods} are left"
        return question_answer(question, f"{n} - {k} = {n - k}. So {owner}.")
    question = rng.choice([
        f"{a.name} has {n} {goods} and {b.name} has {k} {goods}. How many {goods} do they have together?",
        f"{a.name} finds {n} {goods} on Monday and {k} {goods} on Friday. How many {goods} does {a.he} find?",
    ])
    who = "they have" if "together" in question else f"{a.he} finds"
    return question_answer(question, f"{n} + {k} = {n + k}. So {who} {n + k} {goods}.")


def problem_of_boxes(rng):
    a = Person(rng)
    goods = rng.choice(GOODS)
    boxes, each = rng.randint(2, 9), rng.randint(2, 12)
    total = boxes * each
    if rng.random() < 0.5:
        return question_answer(
            f"{a.name} has {boxes} boxes with {each} {goods} in each box. How many {goods} does {a.he} have?",
            f"{boxes} * {each} = {total}. So {a.name} has {total} {goods}.")
    return question_answer(
        f"{a.name} puts {total} {goods} into {boxes} boxes. How many {goods} are in each box?",
        f"{total} / {boxes} = {each}, because {boxes} * {each} = {total}. So each box has {each} {goods}.")


def problem_of_prices(rng):
    a = Person(rng)
    goods = rng.choice(GOODS)
    n, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = n * price
    paid = rng.choice([p for p in (20, 50, 100) if p >= cost])
    return question_answer(
        f"{a.name} buys {n} {goods} for {price} crowns each and pays with {paid} crowns. How much does {a.he} get back?",
        f"{n} * {price} = {cost}; {paid} - {cost} = {paid - cost}. So {a.name} gets {paid - cost} crowns back.")


MATH = (addition, addition, subtraction, subtraction, product, comparison, sequence, order,
        problem_of_giving, problem_of_giving, problem_of_boxes, problem_of_prices)


def math(rng):
    return rng.choice(MATH)(rng)


# ------------------------------------------------------------------------------------------- code

LISTS = ["items", "values", "rows", "prices", "marks", "names", "points", "words", "weights", "ages"]
ELEMENT = {"items": "item", "values": "value", "rows": "row", "prices": "price", "marks": "mark",
           "names": "name", "points": "point", "words": "word", "weights": "weight", "ages": "age"}
LIMITS = ["limit", "bound", "floor", "cap", "border", "target"]
TOTALS = ["total", "result", "acc", "out", "answer"]
INDICES = ["i", "j", "k", "pos", "index"]
TESTS = {">": "above", "<": "below", "==": "equal_to", "!=": "other_than"}
ARITHMETIC = {"+": lambda p, q: p + q, "-": lambda p, q: p - q, "*": lambda p, q: p * q}
COMPARE = {">": lambda p, q: p > q, "<": lambda p, q: p < q, "==": lambda p, q: p == q, "!=": lambda p, q: p != q}


def numbers(rng, n=None):
    return [rng.randint(0, 12) for _ in range(n or rng.randint(3, 5))]


def accumulate(rng):
    xs, limit, total = rng.choice(LISTS), rng.choice(LIMITS), rng.choice(TOTALS)
    x, sign = ELEMENT[xs], rng.choice(list(TESTS))
    counts = rng.random() < 0.5
    name = f"{'count' if counts else 'sum'}_{TESTS[sign]}"
    step = "1" if counts else x
    lines = [f"fn {name}({xs}, {limit}) {{", f"    let {total} = 0;", f"    for {x} in {xs} {{",
             f"        if {x} {sign} {limit} {{", f"            {total} = {total} + {step};", "        }", "    }",
             f"    return {total};", "}"]

    def call(r):
        values, bound = numbers(r), r.randint(1, 9)
        kept = [v for v in values if COMPARE[sign](v, bound)]
        return f"{name}({values}, {bound})", len(kept) if counts else sum(kept)
    return lines, call


def extreme(rng):
    xs, best = rng.choice(LISTS), rng.choice(["best", "top", "found", "peak"])
    x, largest = ELEMENT[xs], rng.random() < 0.5
    name = f"{'largest' if largest else 'smallest'}_{x}"
    sign = ">" if largest else "<"
    lines = [f"fn {name}({xs}) {{", f"    let {best} = {xs}[0];", f"    for {x} in {xs} {{",
             f"        if {x} {sign} {best} {{", f"            {best} = {x};", "        }", "    }",
             f"    return {best};", "}"]

    def call(r):
        values = numbers(r)
        return f"{name}({values})", max(values) if largest else min(values)
    return lines, call


def find(rng):
    xs, target, i = rng.choice(LISTS), rng.choice(["wanted", "needle", "goal"]), rng.choice(INDICES)
    last = rng.random() < 0.5
    name = f"{'last' if last else 'first'}_{ELEMENT[xs]}"
    if last:
        head = [f"    let {i} = len({xs}) - 1;", f"    while {i} >= 0 {{"]
        step = f"        {i} = {i} - 1;"
    else:
        head = [f"    let {i} = 0;", f"    while {i} < len({xs}) {{"]
        step = f"        {i} = {i} + 1;"
    lines = [f"fn {name}({xs}, {target}) {{", *head, f"        if {xs}[{i}] == {target} {{",
             f"            return {i};", "        }", step, "    }", "    return -1;", "}"]

    def call(r):
        values = numbers(r)
        wanted = r.choice(values + [13])
        places = [p for p, v in enumerate(values) if v == wanted]
        return f"{name}({values}, {wanted})", (places[-1] if last else places[0]) if places else -1
    return lines, call


def transform(rng):
    xs, out, by = rng.choice(LISTS), rng.choice(TOTALS), rng.choice(["step", "factor", "delta", "scale"])
    x, sign = ELEMENT[xs], rng.choice(list(ARITHMETIC))
    name = {"+": "raise", "-": "lower", "*": "scale"}[sign] + f"_{xs}"
    lines = [f"fn {name}({xs}, {by}) {{", f"    let {out} = [];", f"    for {x} in {xs} {{",
             f"        push({out}, {x} {sign} {by});", "    }", f"    return {out};", "}"]

    def call(r):
        values, amount = numbers(r), r.randint(1, 5)
        return f"{name}({values}, {amount})", [ARITHMETIC[sign](v, amount) for v in values]
    return lines, call


def select(rng):
    xs, out, limit = rng.choice(LISTS), rng.choice(TOTALS), rng.choice(LIMITS)
    x, sign = ELEMENT[xs], rng.choice(list(TESTS))
    name = f"keep_{TESTS[sign]}"
    lines = [f"fn {name}({xs}, {limit}) {{", f"    let {out} = [];", f"    for {x} in {xs} {{",
             f"        if {x} {sign} {limit} {{", f"            push({out}, {x});", "        }", "    }",
             f"    return {out};", "}"]

    def call(r):
        values, bound = numbers(r), r.randint(1, 9)
        return f"{name}({values}, {bound})", [v for v in values if COMPARE[sign](v, bound)]
    return lines, call


def combine(rng):
    a, b, c = rng.sample(["a", "b", "c", "p", "q", "u", "v", "left", "right", "width", "height"], 3)
    first, second = rng.choice(list(ARITHMETIC)), rng.choice(list(ARITHMETIC))
    total = rng.choice(TOTALS)
    name = rng.choice(["mix", "blend", "join", "merge", "form"]) + rng.choice(["_two", "_both", "_all", ""])
    k = rng.randint(1, 9)
    lines = [f"fn {name}({a}, {b}) {{", f"    let {c} = {a} {first} {b};", f"    let {total} = {c} {second} {k};",
             f"    return {total};", "}"]

    def call(r):
        p, q = r.randint(0, 12), r.randint(0, 12)
        return f"{name}({p}, {q})", ARITHMETIC[second](ARITHMETIC[first](p, q), k)
    return lines, call


def choose(rng):
    x, low, high = rng.choice(["x", "n", "age", "mark", "speed", "level"]), rng.randint(1, 6), rng.randint(7, 14)
    words = rng.choice([("small", "middle", "large"), ("slow", "normal", "fast"), ("cold", "warm", "hot"),
                        ("low", "fair", "high")])
    name = rng.choice(["grade", "class", "label", "rank"]) + f"_{x}"
    lines = [f"fn {name}({x}) {{", f"    if {x} < {low} {{", f'        return "{words[0]}";',
             f"    }} else if {x} < {high} {{", f'        return "{words[1]}";', "    } else {",
             f'        return "{words[2]}";', "    }", "}"]

    def call(r):
        value = r.randint(0, 20)
        return f"{name}({value})", f'"{words[0] if value < low else words[1] if value < high else words[2]}"'
    return lines, call


def repeat(rng):
    n, total, i = rng.choice(["n", "times", "rounds", "count"]), rng.choice(TOTALS), rng.choice(INDICES)
    start, sign, by = rng.randint(0, 5), rng.choice(["+", "*"]), rng.randint(2, 4)
    start = start or 1
    name = rng.choice(["grow", "spread", "extend", "climb"]) + rng.choice(["_by", "_for", "_up"])
    lines = [f"fn {name}({n}) {{", f"    let {total} = {start};", f"    for {i} in range({n}) {{",
             f"        {total} = {total} {sign} {by};", "    }", f"    return {total};", "}"]

    def call(r):
        rounds, value = r.randint(1, 5), start
        for _ in range(rounds):
            value = ARITHMETIC[sign](value, by)
        return f"{name}({rounds})", value
    return lines, call


FUNCTIONS = (accumulate, extreme, find, transform, select, combine, choose, repeat)


def code(rng):
    """One or two functions, then calls of them with the values they really have."""
    parts, calls = [], []
    for maker in rng.sample(FUNCTIONS, rng.choice([1, 1, 2])):
        lines, call = maker(rng)
        parts.append("\n".join(lines))
        calls.append(call)
    checks = []
    for _ in range(rng.randint(1, 3)):
        expression, value = rng.choice(calls)(rng)
        checks.append(f"assert {expression} == {value};")
    return {"text": "\n\n".join(parts + ["\n".join(checks)])}


# ----------------------------------------------------------------------------------------- splits

MAKERS = {"prose": prose, "math": math, "code": code}


def documents(domain, seed, split):
    """An endless seeded stream of documents; every split has a stream of its own."""
    rng = random.Random(f"{seed}/{domain}/{split}")
    while True:
        yield MAKERS[domain](rng)


def key_of(document):
    """What makes two documents the same: for math the question alone, so no answer is known before."""
    return document.get("question", document["text"])


def take(stream, seen, count=None, limit_bytes=None):
    """Documents of `stream` that `seen` does not hold, `count` of them or up to `limit_bytes` of jsonl."""
    taken, size = [], 0
    for document in stream:
        key = key_of(document)
        if key in seen:
            continue
        line = len(json.dumps(document, ensure_ascii=False)) + 1
        if (count is not None and len(taken) == count) or (limit_bytes is not None and size + line > limit_bytes):
            return taken
        seen.add(key)
        taken.append(document)
        size += line
    raise AssertionError("a document stream ended")


def make_splits(seed, train, calibration_bytes, heldout_bytes):
    """{domain: {split: documents}}; held-out first, so that a longer training set never changes it."""
    splits = {}
    for domain in DOMAINS:
        seen = set()
        splits[domain] = {
            "heldout": take(documents(domain, seed, "heldout"), seen, limit_bytes=heldout_bytes),
            "calibration": take(documents(domain, seed, "calibration"), seen, limit_bytes=calibration_bytes),
            "train": take(documents(domain, seed, "train"), seen, count=train),
        }
    return splits


def write_jsonl(path, documents_):
    with open(path, "w", encoding="utf-8") as out:
        for document in documents_:
            out.write(json.dumps(document, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Write the seeded three-domain text of the test model.")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=40000, help="training documents per domain")
    parser.add_argument("--calibration-bytes", type=int, default=140000, help="jsonl bytes per domain")
    parser.add_argument("--heldout-bytes", type=int, default=140000, help="jsonl bytes per domain")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for domain, splits in make_splits(args.seed, args.train, args.calibration_bytes, args.heldout_bytes).items():
        for split, documents_ in splits.items():
            write_jsonl(args.out / f"{domain}.{split}.jsonl", documents_)
            print(f"{domain:6s} {split:12s} {len(documents_):7d} documents")


if __name__ == "__main__":
    main()
