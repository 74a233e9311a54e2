"""Arithmetic of the test model: questions with worked answers; every result is computed."""

from text_prose import Person

GOODS = [
    "apples",
    "pens",
    "books",
    "coins",
    "cards",
    "stamps",
    "shells",
    "nails",
    "tickets",
    "cups",
]


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
        steps.append(
            f"{term} = {total}, write {total % 10}" + (f", carry {carry}" if carry else "")
        )
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
    return question_answer(
        f"What is {x} - {y}?", f"{subtract_steps(x, y)}. The difference is {x - y}."
    )


def product(rng):
    x, y = rng.randint(11, 99), rng.randint(2, 9)
    tens, ones = x // 10 * 10, x % 10
    return question_answer(
        f"What is {x} * {y}?",
        f"{tens} * {y} = {tens * y}; {ones} * {y} = {ones * y}; {tens * y} + {ones * y} = {x * y}. "
        f"The product is {x * y}.",
    )


def comparison(rng):
    x, y = rng.sample(range(10, 1000), 2)
    word = rng.choice(["larger", "smaller"])
    best = max(x, y) if word == "larger" else min(x, y)
    other = x + y - best
    sign = ">" if word == "larger" else "<"
    return question_answer(
        f"Which number is {word}, {x} or {y}?",
        f"{best} {sign} {other}. The {word} number is {best}.",
    )


def sequence(rng):
    start, step = rng.randint(1, 60), rng.randint(2, 9)
    terms = [start + i * step for i in range(5)]
    shown = ", ".join(map(str, terms[:4]))
    return question_answer(
        f"How does the sequence {shown} go on?",
        f"{terms[1]} - {terms[0]} = {step}; {terms[3]} + {step} = {terms[4]}. The next term is {terms[4]}.",
    )


def order(rng):
    values = rng.sample(range(10, 100), 4)
    up = rng.random() < 0.5
    word = "rising" if up else "falling"
    done = sorted(values, reverse=not up)
    return question_answer(
        f"Write {', '.join(map(str, values))} in {word} order.",
        f"The {word} order is {', '.join(map(str, done))}.",
    )


def problem_of_giving(rng):
    a = Person(rng)
    b = Person(rng, a)
    goods = rng.choice(GOODS)
    n = rng.randint(10, 99)
    k = rng.randint(2, n - 1)
    if rng.random() < 0.5:
        question = rng.choice(
            [
                f"{a.name} has {n} {goods}. {a.He} gives {k} {goods} to {b.name}. How many {goods} does {a.name} have now?",
                f"There are {n} {goods} in a box. {b.name} takes {k} of them. How many {goods} are left?",
            ]
        )
        owner = (
            f"{a.name} has {n - k} {goods}"
            if question.startswith(a.name)
            else f"{n - k} {goods} are left"
        )
        return question_answer(question, f"{n} - {k} = {n - k}. So {owner}.")
    question = rng.choice(
        [
            f"{a.name} has {n} {goods} and {b.name} has {k} {goods}. How many {goods} do they have together?",
            f"{a.name} finds {n} {goods} on Monday and {k} {goods} on Friday. How many {goods} does {a.he} find?",
        ]
    )
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
            f"{boxes} * {each} = {total}. So {a.name} has {total} {goods}.",
        )
    return question_answer(
        f"{a.name} puts {total} {goods} into {boxes} boxes. How many {goods} are in each box?",
        f"{total} / {boxes} = {each}, because {boxes} * {each} = {total}. So each box has {each} {goods}.",
    )


def problem_of_prices(rng):
    a = Person(rng)
    goods = rng.choice(GOODS)
    n, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = n * price
    paid = rng.choice([p for p in (20, 50, 100) if p >= cost])
    return question_answer(
        f"{a.name} buys {n} {goods} for {price} crowns each and pays with {paid} crowns. How much does {a.he} get back?",
        f"{n} * {price} = {cost}; {paid} - {cost} = {paid - cost}. So {a.name} gets {paid - cost} crowns back.",
    )


MATH = (
    addition,
    addition,
    subtraction,
    subtraction,
    product,
    comparison,
    sequence,
    order,
    problem_of_giving,
    problem_of_giving,
    problem_of_boxes,
    problem_of_prices,
)


def question_with_answer(rng):
    return rng.choice(MATH)(rng)
