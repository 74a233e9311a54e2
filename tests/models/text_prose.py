"""Prose of the test model: short stories and descriptions from our own words and grammars."""

GIRLS = [
    "Mara",
    "Lina",
    "Tess",
    "Ruth",
    "Nora",
    "Ida",
    "Clara",
    "Vera",
    "Edith",
    "Anna",
    "Dora",
    "June",
]
BOYS = ["Tom", "Emil", "Hugo", "Paul", "Oscar", "Finn", "Karl", "Ben", "Otto", "Max", "Leo", "Sam"]
ANIMALS = [
    "fox",
    "goose",
    "cat",
    "dog",
    "hare",
    "crow",
    "mole",
    "bear",
    "owl",
    "goat",
    "mouse",
    "duck",
]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "golden", "silver"]
THINGS = [
    "kite",
    "lamp",
    "boat",
    "drum",
    "scarf",
    "key",
    "basket",
    "clock",
    "bottle",
    "coat",
    "ladder",
    "mirror",
    "rope",
    "bell",
    "box",
    "map",
    "spoon",
    "hat",
    "book",
    "flute",
]
PLACES = [
    "the old mill",
    "the harbour",
    "the market",
    "the library",
    "the orchard",
    "the bridge",
    "the station",
    "the garden",
    "the lighthouse",
    "the school",
    "the barn",
    "the castle",
]
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
TIMES = [
    "in the morning",
    "at noon",
    "in the evening",
    "before breakfast",
    "after school",
    "late at night",
]
PARTS = [
    "on the table",
    "under the bench",
    "beside the door",
    "near the window",
    "behind the stove",
    "on the shelf",
    "in the corner",
    "above the chest",
]
PLURALS = {
    "apple": "apples",
    "egg": "eggs",
    "fish": "fish",
    "stone": "stones",
    "coin": "coins",
    "loaf": "loaves",
    "berry": "berries",
    "candle": "candles",
    "leaf": "leaves",
    "plum": "plums",
}
NUMBERS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


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
        rng.choice(
            [
                f"{a.name} had {article(colour)} {thing}, and {a.he} took it everywhere.",
                f"There was a {a.child} called {a.name} who loved {a.his} {colour} {thing}.",
                f"{a.name} was given {article(colour)} {thing} by {a.his} grandfather.",
            ]
        ),
        rng.choice(
            [
                f"One day {a.he} went to {lost} and left the {thing} there.",
                f"But on the way to {lost} {a.he} lost the {colour} {thing}.",
                f"{rng.choice(TIMES).capitalize()} {a.he} walked to {lost}, and when {a.he} came home the {thing} was gone.",
            ]
        ),
        f"{a.name} was {mood} and asked {a.his} friend {b.name} for help.",
        rng.choice(
            [
                f"{b.name} looked at {lost} first, but {b.he} found nothing there.",
                f'"Did you look at {found}?" said {b.name}.',
                f"{b.He} said that someone at {found} might have seen it.",
            ]
        ),
        rng.choice(
            [
                f"Together they went to {found}, and there was the {colour} {thing}.",
                f"At {found} {b.name} saw something {colour}: it was the {thing}.",
            ]
        ),
        rng.choice(
            [
                f"{a.name} thanked {b.name} and was not {mood} any more.",
                f'"Thank you, {b.name}," said {a.name}, and {a.he} held the {thing} in {a.his} hands.',
                f"{a.name} never took the {thing} to {lost} again.",
            ]
        ),
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
        rng.choice(
            [
                f"The {first} was always {mood}, but the {second} was not.",
                f"Every day the {first} met the {second} and they talked for a long time.",
            ]
        ),
        f"The {first} had {counted(n, noun)}, and the {second} had none.",
        rng.choice(
            [
                f'"Will you share with me?" asked the {second}.',
                f"The {second} was hungry and sat down beside the {first}.",
            ]
        ),
        f"So the {first} gave {counted(given, noun)} to the {second}.",
        f"Now the {first} had {counted(n - given, noun)} and the {second} had {counted(given, noun)}.",
        rng.choice(
            [
                f"They stayed friends, and {place} was quiet again.",
                f"From then on the {second} brought something to the {first} every week.",
            ]
        ),
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
        lines.append(
            rng.choice(
                [
                    f"There is {article(colour)} {thing} {part}.",
                    f"{part.capitalize()} stands {article(colour)} {thing}.",
                    f"{owner.He} puts the {colour} {thing} {part}.",
                ]
            )
        )
    asked = rng.randrange(3)
    lines.append(
        rng.choice(
            [
                f"When {owner.name} needs the {items[asked]}, {owner.he} looks {parts[asked]}.",
                f"The {items[asked]} is {colours[asked]}, and it is {parts[asked]}.",
                f"If you want the {colours[asked]} {items[asked]}, look {parts[asked]}.",
            ]
        )
    )
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
        rng.choice(
            [
                f"On such a {kind} day only the {job} was there.",
                f"The {job} at {place} did not like the {kind} day.",
            ]
        ),
        rng.choice(
            [
                f'"Why do you carry your {wear}?" asked the {job}. "Because it is {kind}," said {a.name}.',
                f"The {job} saw the {wear} and laughed, but {a.name} was glad to have it.",
            ]
        ),
        f"{a.He} stayed until the evening, and then {a.he} took the {wear} and walked home from {place}.",
    ]
    return " ".join(lines)


def story_of_work(rng):
    a = Person(rng)
    b = Person(rng, a)
    job = rng.choice(JOBS)
    noun = rng.choice(list(PLURALS))
    n, more = rng.randint(2, 10), rng.randint(1, 10)
    days = rng.sample(
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"], 2
    )
    lines = [
        f"{a.name} and {b.name} work for the {job}.",
        f"On {days[0]} {a.name} brings {counted(n, noun)}, and on {days[1]} {b.name} brings {counted(more, noun)}.",
        f"The {job} counts them: {counted(n, noun)} from {a.name} and {counted(more, noun)} from {b.name} "
        f"make {counted(n + more, noun)}.",
        rng.choice(
            [
                f"{b.name} comes on {days[1]} because {b.he} likes the {job} best on that day.",
                f"{a.name} comes on {days[0]} and {b.name} does not.",
            ]
        ),
        rng.choice(
            [
                f"The {job} pays both of them, and they are {rng.choice(MOODS)}.",
                f'"Come again on {days[0]}, {a.name}," says the {job}.',
            ]
        ),
    ]
    return " ".join(lines)


PROSE = (story_of_loss, story_of_animals, description_of_room, story_of_weather, story_of_work)


def prose(rng):
    return {"text": rng.choice(PROSE)(rng)}
