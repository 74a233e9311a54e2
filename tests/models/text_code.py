"""Code of the test model: functions of a small imperative language, and calls with their values."""

LISTS = [
    "items",
    "values",
    "rows",
    "prices",
    "marks",
    "names",
    "points",
    "words",
    "weights",
    "ages",
]
ELEMENT = {
    "items": "item",
    "values": "value",
    "rows": "row",
    "prices": "price",
    "marks": "mark",
    "names": "name",
    "points": "point",
    "words": "word",
    "weights": "weight",
    "ages": "age",
}
LIMITS = ["limit", "bound", "floor", "cap", "border", "target"]
TOTALS = ["total", "result", "acc", "out", "answer"]
INDICES = ["i", "j", "k", "pos", "index"]
TESTS = {">": "above", "<": "below", "==": "equal_to", "!=": "other_than"}
ARITHMETIC = {"+": lambda p, q: p + q, "-": lambda p, q: p - q, "*": lambda p, q: p * q}
COMPARE = {
    ">": lambda p, q: p > q,
    "<": lambda p, q: p < q,
    "==": lambda p, q: p == q,
    "!=": lambda p, q: p != q,
}


def numbers(rng, n=None):
    return [rng.randint(0, 12) for _ in range(n or rng.randint(3, 5))]


def accumulate(rng):
    xs, limit, total = rng.choice(LISTS), rng.choice(LIMITS), rng.choice(TOTALS)
    x, sign = ELEMENT[xs], rng.choice(list(TESTS))
    counts = rng.random() < 0.5
    name = f"{'count' if counts else 'sum'}_{TESTS[sign]}"
    step = "1" if counts else x
    lines = [
        f"fn {name}({xs}, {limit}) {{",
        f"    let {total} = 0;",
        f"    for {x} in {xs} {{",
        f"        if {x} {sign} {limit} {{",
        f"            {total} = {total} + {step};",
        "        }",
        "    }",
        f"    return {total};",
        "}",
    ]

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
    lines = [
        f"fn {name}({xs}) {{",
        f"    let {best} = {xs}[0];",
        f"    for {x} in {xs} {{",
        f"        if {x} {sign} {best} {{",
        f"            {best} = {x};",
        "        }",
        "    }",
        f"    return {best};",
        "}",
    ]

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
    lines = [
        f"fn {name}({xs}, {target}) {{",
        *head,
        f"        if {xs}[{i}] == {target} {{",
        f"            return {i};",
        "        }",
        step,
        "    }",
        "    return -1;",
        "}",
    ]

    def call(r):
        values = numbers(r)
        wanted = r.choice(values + [13])
        places = [p for p, v in enumerate(values) if v == wanted]
        return f"{name}({values}, {wanted})", (places[-1] if last else places[0]) if places else -1

    return lines, call


def transform(rng):
    xs, out, by = (
        rng.choice(LISTS),
        rng.choice(TOTALS),
        rng.choice(["step", "factor", "delta", "scale"]),
    )
    x, sign = ELEMENT[xs], rng.choice(list(ARITHMETIC))
    name = {"+": "raise", "-": "lower", "*": "scale"}[sign] + f"_{xs}"
    lines = [
        f"fn {name}({xs}, {by}) {{",
        f"    let {out} = [];",
        f"    for {x} in {xs} {{",
        f"        push({out}, {x} {sign} {by});",
        "    }",
        f"    return {out};",
        "}",
    ]

    def call(r):
        values, amount = numbers(r), r.randint(1, 5)
        return f"{name}({values}, {amount})", [ARITHMETIC[sign](v, amount) for v in values]

    return lines, call


def select(rng):
    xs, out, limit = rng.choice(LISTS), rng.choice(TOTALS), rng.choice(LIMITS)
    x, sign = ELEMENT[xs], rng.choice(list(TESTS))
    name = f"keep_{TESTS[sign]}"
    lines = [
        f"fn {name}({xs}, {limit}) {{",
        f"    let {out} = [];",
        f"    for {x} in {xs} {{",
        f"        if {x} {sign} {limit} {{",
        f"            push({out}, {x});",
        "        }",
        "    }",
        f"    return {out};",
        "}",
    ]

    def call(r):
        values, bound = numbers(r), r.randint(1, 9)
        return f"{name}({values}, {bound})", [v for v in values if COMPARE[sign](v, bound)]

    return lines, call


def combine(rng):
    a, b, c = rng.sample(["a", "b", "c", "p", "q", "u", "v", "left", "right", "width", "height"], 3)
    first, second = rng.choice(list(ARITHMETIC)), rng.choice(list(ARITHMETIC))
    total = rng.choice(TOTALS)
    name = rng.choice(["mix", "blend", "join", "merge", "form"]) + rng.choice(
        ["_two", "_both", "_all", ""]
    )
    k = rng.randint(1, 9)
    lines = [
        f"fn {name}({a}, {b}) {{",
        f"    let {c} = {a} {first} {b};",
        f"    let {total} = {c} {second} {k};",
        f"    return {total};",
        "}",
    ]

    def call(r):
        p, q = r.randint(0, 12), r.randint(0, 12)
        return f"{name}({p}, {q})", ARITHMETIC[second](ARITHMETIC[first](p, q), k)

    return lines, call


def choose(rng):
    x, low, high = (
        rng.choice(["x", "n", "age", "mark", "speed", "level"]),
        rng.randint(1, 6),
        rng.randint(7, 14),
    )
    words = rng.choice(
        [
            ("small", "middle", "large"),
            ("slow", "normal", "fast"),
            ("cold", "warm", "hot"),
            ("low", "fair", "high"),
        ]
    )
    name = rng.choice(["grade", "class", "label", "rank"]) + f"_{x}"
    lines = [
        f"fn {name}({x}) {{",
        f"    if {x} < {low} {{",
        f'        return "{words[0]}";',
        f"    }} else if {x} < {high} {{",
        f'        return "{words[1]}";',
        "    } else {",
        f'        return "{words[2]}";',
        "    }",
        "}",
    ]

    def call(r):
        value = r.randint(0, 20)
        return (
            f"{name}({value})",
            f'"{words[0] if value < low else words[1] if value < high else words[2]}"',
        )

    return lines, call


def repeat(rng):
    n, total, i = (
        rng.choice(["n", "times", "rounds", "count"]),
        rng.choice(TOTALS),
        rng.choice(INDICES),
    )
    start, sign, by = rng.randint(0, 5), rng.choice(["+", "*"]), rng.randint(2, 4)
    start = start or 1
    name = rng.choice(["grow", "spread", "extend", "climb"]) + rng.choice(["_by", "_for", "_up"])
    lines = [
        f"fn {name}({n}) {{",
        f"    let {total} = {start};",
        f"    for {i} in range({n}) {{",
        f"        {total} = {total} {sign} {by};",
        "    }",
        f"    return {total};",
        "}",
    ]

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
