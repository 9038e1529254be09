"""The synthetic tasks of the demo checkpoint: generators of items, the held-out split and the grader.

Items depend only on the given `random.Random`. Every prompt has exactly one right output, because adaptive
stopping needs a mean entropy below 0.005 nats, which a model that must guess never reaches. A hash of the
part that must not be memorised (such as the two numbers, or the word) decides if an item is held out. The
hash does not include the item's index, so training and evaluation share no such part in any order of drawing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Austria": "Vienna",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Greece": "Athens", "Ireland": "Dublin", "Hungary": "Budapest",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Serbia": "Belgrade",
    "Belgium": "Brussels", "Iceland": "Reykjavik", "Latvia": "Riga", "Estonia": "Tallinn",
    "Lithuania": "Vilnius", "Ukraine": "Kyiv", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Ghana": "Accra", "Morocco": "Rabat", "Japan": "Tokyo", "China": "Beijing", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Nepal": "Kathmandu", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Ecuador": "Quito", "Australia": "Canberra",
}  # fmt: skip
COUNTRY_OF = {city: country for country, city in CAPITALS.items()}
CITIES = tuple(COUNTRY_OF)

ADD_PROMPTS = ("What is {a} + {b}?", "{a} + {b}", "Add {a} and {b}.", "How much is {a} plus {b}?")
JSON_PROMPTS = ("JSON for {x}", "Give me JSON for {x}.", "List {x} as JSON.")
CAPITAL_PROMPTS = ("What is the capital of {x}?", "Capital of {x}?", "Name the capital of {x}.",
                   "The capital of {x} is")  # fmt: skip
COUNT_PROMPTS = ("Count to {n}.", "Count from 1 to {n}.", "Count up to {n}.")
SPELL_PROMPTS = ('Spell "{w}" backwards.', 'Reverse the word "{w}".', '"{w}" backwards')
TOOL_PROMPTS = {
    "get_weather": ("What is the weather in {x}?", "How is the weather in {x}?", "Weather in {x}?"),
    "get_time": ("What time is it in {x}?", "Tell me the time in {x}.", "Time in {x}?"),
}
OTHER_PROMPTS = (
    "Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello, who are you?", "Good morning", "How are you?",
    "Who are you?", "What are you?", "What can you do?", "What do you know?", "Help", "Help me.",
    "Why is the sky blue?", "Tell me a joke.", "Write a poem.", "Write a poem about the sea.",
    "Tell me a story.", "Thank you!", "Thanks", "Are you a robot?", "What is your name?",
    "Explain quantum physics.", "How do I cook rice?", "Good night", "Write a Python function.",
    "What is the meaning of life?", "Who wrote Hamlet?", "Sing a song.", "Test", "Why?", "What is love?",
    "Can you help me?", "How old are you?", "Summarize this text.", "Translate this to French.",
    "Where are you from?", "Tell me something.", "What is machine learning?", "Is the earth flat?", "Bye",
)  # fmt: skip
OTHER_ANSWER = (
    "I am a small demo model. I can add, count, spell backwards, name capitals, "
    "list cities as JSON and call a tool."
)
NO_TOOL = {"get_weather": "I have no tool for the weather.", "get_time": "I have no tool for the time."}
SYSTEM_MESSAGES = (
    "You are a helpful assistant.", "Be brief.", "Answer in English.", "You are a friendly model.",
)  # fmt: skip
SKIES = ("sunny", "cloudy", "windy", "rainy", "foggy", "snowy")
REAL_WORDS = (
    "planet", "garden", "silver", "window", "bottle", "marble", "orange", "pencil", "rocket", "castle",
    "dragon", "forest", "guitar", "hammer", "island", "jacket", "kitten", "ladder", "magnet", "needle",
    "parrot", "puzzle", "rabbit", "saddle", "ticket", "tunnel", "violin", "walnut", "yellow", "zebra",
    "apple", "bread", "cloud", "drum", "eagle", "flute", "grape", "horse", "ivory", "jelly", "lemon",
    "mango", "nurse", "ocean", "piano", "queen", "river", "snake", "tiger", "train", "uncle", "voice",
    "wheel", "house", "stone", "music", "light", "tree", "fish", "bird", "milk", "moon", "star", "wind",
    "fire", "gold", "lamp", "frog", "ship", "cat", "dog", "sun", "map", "pen", "cup", "owl", "diffuse",
    "diamond", "picture", "chicken", "blanket", "mountain",
)  # fmt: skip
HELD_OUT_BOUNDS = frozenset({12, 17, 21, 26, 30, 33, 38, 45, 48, 54})  # each last digit from 0 to 8 is in it
MAX_BOUND = 60


def tool(name: str) -> dict[str, Any]:
    """Return the declaration, with a JSON schema, of the tool `get_weather` or `get_time`."""
    about = {"get_weather": "Get the weather in a city.", "get_time": "Get the time in a city."}[name]
    city = {"type": "string", "description": "City name"}
    schema = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


@dataclass(frozen=True)
class Item:
    """One prompt and its only right output. `stop` is the special token that ends the turn."""

    task: str
    messages: tuple[dict[str, Any], ...]
    thought: str
    answer: str
    thinking: bool
    tools: tuple[str, ...] = ()
    stop: str = "<turn|>"
    held_out: bool = False

    @property
    def declarations(self) -> list[dict[str, Any]] | None:
        return [tool(name) for name in self.tools] or None

    @property
    def target(self) -> str:
        """The whole model output as text, including special tokens and the stop token."""
        thought = f"<|channel>thought\n{self.thought}<channel|>" if self.thinking else ""
        return f"{thought}{self.answer}{self.stop}"


def is_held_out(*key: object, percent: int = 10) -> bool:
    """Return True for about `percent` % of all keys. A key has the same result in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def _user(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def column_work(a: int, b: int) -> str:
    """Add a and b in columns, in lines like "ones 5+8+0=13". A model easily learns lines of fixed width."""
    rows, carry = [], 0
    for place in ("ones", "tens", "hundreds"):
        x, y = a % 10, b % 10
        total = x + y + carry
        rows.append(f"{place} {x}+{y}+{carry}={total:02d}")
        a, b, carry = a // 10, b // 10, total // 10
    return "\n".join(rows)


def addition(rng: random.Random, thinking: bool) -> Item:
    a, b = (rng.randint(*((1, 9), (10, 99), (100, 999))[rng.choices((0, 1, 2), (1, 3, 4))[0]]) for _ in "ab")
    prompt = rng.choice(ADD_PROMPTS).format(a=a, b=b)
    held = is_held_out("add", min(a, b), max(a, b))
    return Item("addition", _user(prompt), column_work(a, b), str(a + b), thinking, held_out=held)


def _names(cities: list[str]) -> str:
    return cities[0] if len(cities) == 1 else ", ".join(cities[:-1]) + " and " + cities[-1]


def cities_json(rng: random.Random, thinking: bool) -> Item:
    cities = rng.sample(CITIES, rng.randint(1, 3))
    phrasing = rng.choice(JSON_PROMPTS)
    answer = json.dumps([{"city": city, "country": COUNTRY_OF[city]} for city in cities])
    thought = "The list is " + _names(cities) + "."
    held = is_held_out("json", phrasing, *cities)
    return Item("json", _user(phrasing.format(x=_names(cities))), thought, answer, thinking, held_out=held)


def capitals(rng: random.Random, thinking: bool) -> Item:
    country = rng.choice(tuple(CAPITALS))
    phrasing = rng.choice(CAPITAL_PROMPTS)
    answer = f"The capital of {country} is {CAPITALS[country]}."
    held = is_held_out("capital", phrasing, country, percent=15)
    return Item("capitals", _user(phrasing.format(x=country)), f"The country is {country}.", answer, thinking,
                held_out=held)  # fmt: skip


def counting(rng: random.Random, thinking: bool) -> Item:
    n = rng.randint(1, MAX_BOUND)
    start, phrasing = 1, rng.choice(COUNT_PROMPTS)
    if n > 11 and rng.random() < 0.4:  # otherwise the position of n in the canvas could be memorised
        start, phrasing = rng.randrange(11, n, 10), "Count from {a} to {n}."
    answer = " ".join(str(i) for i in range(start, n + 1))
    prompt = phrasing.format(a=start, n=n)
    thought = f"Count from {start} and stop after {n:02d}."
    return Item("counting", _user(prompt), thought, answer, thinking, held_out=n in HELD_OUT_BOUNDS)


def pseudo_word(rng: random.Random) -> str:
    """Return 3 to 8 letters, pronounceable or random, so that every letter occurs at every place."""
    length = rng.randint(3, 8)
    if rng.random() < 0.5:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
    return "".join(rng.choice(("bcdfghklmnprstvwz", "aeiou")[i % 2]) for i in range(length))


def spelling(rng: random.Random, thinking: bool) -> Item:
    word = rng.choice(REAL_WORDS) if rng.random() < 0.1 else pseudo_word(rng)
    prompt = rng.choice(SPELL_PROMPTS).format(w=word)
    thought = f"{'-'.join(word)} has {len(word)} letters."
    return Item("spelling", _user(prompt), thought, "-".join(reversed(word)), thinking,
                held_out=is_held_out("spell", word))  # fmt: skip


def tool_use(rng: random.Random, thinking: bool) -> Item:
    """Return an item of one of three situations: call a tool, restate its response, answer without a tool."""
    name = rng.choice(("get_weather", "get_time"))
    other = "get_time" if name == "get_weather" else "get_weather"
    phrasing, city = rng.choice(TOOL_PROMPTS[name]), rng.choice(CITIES)
    user = _user(phrasing.format(x=city))
    held = is_held_out("tool", phrasing, city)
    situation = rng.choices(("call", "response", "none"), (5, 3, 2))[0]
    if situation == "none":
        return Item("no_tool", user, "There is no tool for this.", NO_TOOL[name], thinking,
                    rng.choice(((), (other,))), held_out=held)  # fmt: skip
    tools = rng.choice(((name,), (name, other), (other, name)))
    if situation == "call":
        output = f'<|tool_call>call:{name}{{city:<|"|>{city}<|"|>}}<tool_call|>'
        thought = f"Call {name} for {city}."
        return Item("tool_call", user, thought, output, thinking, tools, "<|tool_response>", held)
    if name == "get_weather":
        degrees, sky = rng.randint(1, 39), rng.choice(SKIES)
        response, answer = f"{degrees} C and {sky}", f"It is {degrees} C and {sky} in {city}."
    else:
        response = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        answer = f"It is {response} in {city}."
    call = {"type": "function", "function": {"name": name, "arguments": {"city": city}}}
    call_turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages = (*user, call_turn, {"role": "tool", "name": name, "content": response})
    return Item("tool_response", messages, "The tool has answered.", answer, thinking, tools, held_out=held)


def other(rng: random.Random, thinking: bool) -> Item:
    """Return an item outside the tasks: a prompt from a list, or a jumble of words, with one fixed answer."""
    text = rng.choice(OTHER_PROMPTS)
    if rng.random() < 0.4:
        words = [w.strip("?!.,") for _ in range(3) for w in rng.choice(OTHER_PROMPTS).split()]
        words += [pseudo_word(rng), rng.choice(REAL_WORDS)]
        rng.shuffle(words)
        text = " ".join(words[: rng.randint(2, 7)]).capitalize() + rng.choice(("", ".", "?", "!"))
    held = is_held_out("other", text)
    return Item("other", _user(text), "This is not one of my tasks.", OTHER_ANSWER, thinking, held_out=held)


Generator = Callable[[random.Random, bool], Item]
# Family of tasks -> its generator, its share of the training samples, the share of its samples with thinking.
FAMILIES: dict[str, tuple[Generator, float, float]] = {
    "addition": (addition, 0.36, 0.92),
    "json": (cities_json, 0.05, 0.5),
    "capitals": (capitals, 0.03, 0.5),
    "counting": (counting, 0.42, 0.5),
    "spelling": (spelling, 0.06, 0.5),
    "tools": (tool_use, 0.06, 0.5),
    "other": (other, 0.02, 0.5),
}


def draw(rng: random.Random, family: str, *, held_out: bool, thinking: bool | None = None) -> Item:
    """Return a random item of `family` that is held out or not, as `held_out` says (rejection sampling)."""
    generator, _, think_share = FAMILIES[family]
    while True:
        item = generator(rng, rng.random() < think_share if thinking is None else thinking)
        if item.held_out == held_out:
            return item


_MOST_IN_VAIN = 2000  # draws without a new item; even the rarest kind of item comes about once in a hundred


def held_out_items(count: int, seed: int) -> list[Item]:
    """Return `count` different held-out items per task and thinking mode, half as many per tool situation.

    Raises `ValueError` if a task has fewer items. For instance, there are only 20 for capitals.
    """
    rng = random.Random(seed)
    items: list[Item] = []
    for family in FAMILIES:
        for thinking in (True, False):
            kinds = ("tool_call", "tool_response", "no_tool") if family == "tools" else (family,)
            wanted = dict.fromkeys(kinds, max(1, count // 2) if family == "tools" else count)
            in_vain = 0
            while any(wanted.values()):
                item = draw(rng, family, held_out=True, thinking=thinking)
                in_vain += 1
                if wanted[item.task] and item not in items:
                    wanted[item.task] -= 1
                    items.append(item)
                    in_vain = 0
                if in_vain == _MOST_IN_VAIN:
                    raise ValueError(
                        f"{family} has fewer than {count} different held-out items; ask for fewer"
                    )
    return items


def training_item(rng: random.Random) -> Item:
    """Return a random item for training. Some have a system message or an earlier exchange in front."""
    names = tuple(FAMILIES)
    item = draw(rng, rng.choices(names, [FAMILIES[n][1] for n in names])[0], held_out=False)
    messages = item.messages
    if rng.random() < 0.05:
        earlier = draw(rng, rng.choice(("capitals", "addition", "spelling", "other")), held_out=False)
        messages = (*earlier.messages, {"role": "assistant", "content": earlier.answer}, *messages)
    if rng.random() < 0.05:
        messages = ({"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}, *messages)
    return Item(item.task, messages, item.thought, item.answer, item.thinking, item.tools, item.stop)


def is_right(item: Item, answer: str, tool_calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """True if the answer's text and the tool calls, as pairs of name and arguments, are right for `item`."""
    if item.task == "tool_call":
        name = "get_weather" if "get_weather" in item.answer else "get_time"
        city = item.answer.split('<|"|>')[1]
        return tool_calls == [(name, {"city": city})]
    if tool_calls:
        return False
    if item.task == "json":
        try:
            return bool(json.loads(answer) == json.loads(item.answer))
        except (ValueError, RecursionError):
            return False
    return answer.strip() == item.answer
