"""Drift of a long English text, canvas by canvas: loops and other languages.

Seen are much said again, four words or more said three times in a row, ten or more twice in a row, a word
three times in a row, and stretches that are not English. Not seen are shuffled words, shuffled letters,
single words out of place, a single sentence said again later on, and most runs of fewer than twenty words of
another language in Latin letters. Wrongly called drifting may be text full of code, and a licence's
definitions.

The limits below were set once, by hand, on a book of English technical prose without its code; nothing here
repeats that measurement. The tests show a short text of each kind.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from mlx_diffusiongemma.evaluation.task import Reply

WORDS_PER_BLOCK = 190  # what a canvas of 256 tokens holds of English prose, for runners without canvases
FEWEST_WORDS = 100  # a phrase said again weighs too much in fewer; such a block goes to its neighbour
MOST_REPEATED = 0.15  # of a block's 4-grams; that book: 0.01 at the median, 0.12 at most
THRICE, TWICE = 4, 10  # words; fewer may end one sentence and begin the next
WINDOW = 30  # words
FEW_ENGLISH = 2  # function words in a window; that book: 4 at least; French: 0 typically
MANY_FOREIGN = 4  # words of other languages in a window; that book: 1 at most; French: 7 typically
LOOP_WORDS = 8  # a shorter paragraph, such as a heading, may come twice

# One word: letters and digits with inner apostrophes; of scripts without spaces, a character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_LETTERS = f"(?:(?![{_UNSPACED}])\\w)+"
_WORD = re.compile(f"[{_UNSPACED}]|{_LETTERS}(?:['’]{_LETTERS})*")
# Letters that are not Latin. One by itself is a symbol, such as λ, unless it is a whole word of its script.
_NOT_LATIN = "\u0370-\u1dff\u1f00-\u1fff\u2c80-\ua71f\ua800-\ud7ff"
_OTHER_SCRIPT = re.compile(f"[{_UNSPACED}]|(?=..)\\w*[{_NOT_LATIN}]")
PARAGRAPHS = re.compile(r"\n(?:[^\S\n]*\n)+")

_FUNCTION_WORDS = """
the of and to a in is that it for as with on be by are this was at from or not have but an which
they one you its were their has will if when can there more all so than them these no into other
about only some what such would may each been like then both between how over also where after most
because who while just those must had do does did his her he she we our us your my i very much many
any even every up out through down before same two first now still could should itself nor under
again without within though until
"""
# The commonest of German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish, Turkish, Indonesian,
# less those that are also English words (die, van, pour) or symbols (y, z).
_COMMON_ELSEWHERE = """
der das und dem nicht ist sind ein eine einen einer mit auf für sich auch von zu wird wenn aber nach
oder wie bei über noch durch le les des du et une est que qui dans pas sur avec ce cette sont au aux
mais nous vous il elle el los las del un por para una es como pero más su lo sus esta este di che è
della dei nel sono gli alla anche più os uma não da na em se ao pelo pela são het een niet dat zijn
voor ook maar wordt naar się nie jest jak od przez oraz po dla są tego że och att det som är av för
inte på ett ve bir bu için ile olarak daha çok yang untuk dengan adalah
"""
_EMPHATIC = frozenset(["very", "far", "long", "never", "always", "no", "so", "ha", "ho"])
_ENGLISH = frozenset(_FUNCTION_WORDS.split())
_FOREIGN = frozenset(_COMMON_ELSEWHERE.split())


@dataclass(frozen=True)
class Stretch:
    """A canvas of text. repeated: share of its 4-grams that were said before, in it or earlier. echoed: share
    of its words that only say again what stands right before. foreign: share of its words that stand in no
    English prose."""

    words: int
    repeated: float
    echoed: float
    foreign: float

    def shown(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @property
    def fault(self) -> str:
        """How it drifts; empty when it does not."""
        if self.repeated > MOST_REPEATED:
            return f"repeats itself ({self.repeated:.0%} of its 4-grams)"
        if self.echoed:
            return f"says the same twice in a row ({self.echoed:.0%} of its words)"
        return f"leaves English ({self.foreign:.0%} of its words)" if self.foreign else ""


def stretches(reply: Reply, granted: str = "") -> list[Stretch]:
    """The answer, canvas by canvas; a word counts where it begins. granted: what may be said again."""
    blocks = _joined(_words(reply))
    everything = [word for block in blocks for word in block]
    may = set(_grams(words(granted)))
    again, echoed, foreign = _again(everything, may), _echoed(everything, may), _foreign(everything)
    found, start = [], 0
    for block in blocks:
        end = start + len(block)
        grams = max(1, end - max(start, 3))
        repeated, *others = (sum(marks[start:end]) for marks in (again, echoed, foreign))
        found.append(Stretch(len(block), repeated / grams, *(count / len(block) for count in others)))
        start = end
    return found


def _grams(text: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(text, text[1:], text[2:], text[3:], strict=False)


def _again(text: list[str], granted: set[tuple[str, ...]]) -> list[bool]:
    """Of each word, whether it ends a 4-gram that was said before."""
    found, said = [False] * min(3, len(text)), set[tuple[str, ...]]()
    for gram in _grams(text):
        found.append(gram in said and gram not in granted)
        said.add(gram)
    return found


def _echoed(text: list[str], granted: set[tuple[str, ...]]) -> list[bool]:
    """Of each word, whether it only repeats what stands right before it: THRICE words or more for the third
    time, TWICE or more for the second, one word for the third. Numbers do not count, nor what is emphatic."""
    triples = zip(text, text[1:], text[2:], strict=False)
    thrice = [a == b == c and not (a.isdigit() or a in _EMPHATIC) for a, b, c in triples]
    found = [False] * min(2, len(text)) + thrice
    last: dict[tuple[str, ...], int] = {}
    lag = alike = 0  # words back to where a 4-gram was said last, and how many words in a row are so
    for end, gram in enumerate(_grams(text), 3):
        counts = gram not in granted and not all(word.isdigit() for word in gram)
        back = end - last[gram] if counts and gram in last else 0
        lag, alike, last[gram] = back, alike + 1 if back == lag else 4, end
        if not lag:
            continue
        # a short loop counts as one of several rounds
        needed = min(3 * lag * -(-THRICE // lag), 2 * lag * -(-TWICE // lag)) - lag
        if alike >= needed:
            new = alike if alike == needed else 1
            found[end + 1 - new : end + 1] = [True] * new
    return found


def _foreign(text: list[str]) -> list[bool]:
    """Of each word, whether it belongs to what makes some WINDOW words no English prose."""
    english = [word in _ENGLISH for word in text]
    others = [word in _FOREIGN or bool(_OTHER_SCRIPT.match(word)) for word in text]
    english_before, others_before = [0, *accumulate(english)], [0, *accumulate(others)]
    found = [False] * len(text)
    for start in range(len(text) - WINDOW + 1):
        end, middle = start + WINDOW, start + WINDOW // 2
        if english_before[end] - english_before[start] <= FEW_ENGLISH:
            first = max((at + 1 for at in range(start, middle) if english[at]), default=start)
            last = min((at for at in range(middle, end) if english[at]), default=end)
        elif others_before[end] - others_before[start] >= MANY_FOREIGN:
            first = min(at for at in range(start, end) if others[at])
            last = max(at + 1 for at in range(start, end) if others[at])
        else:
            continue
        found[first:last] = [True] * (last - first)
    return found


def repeated_paragraphs(text: str) -> int:
    """How many paragraphs of at least LOOP_WORDS words say what an earlier one said, word for word."""
    paragraphs = [tuple(words(part)) for part in PARAGRAPHS.split(text)]
    long = [part for part in paragraphs if len(part) >= LOOP_WORDS]
    return len(long) - len(set(long))


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _words(reply: Reply) -> list[list[str]]:
    """The words of each canvas, or of each WORDS_PER_BLOCK where the runner knows of no canvases."""
    if not any(reply.blocks):
        everything = words(reply.answer)
        return [everything[at : at + WORDS_PER_BLOCK] for at in range(0, len(everything), WORDS_PER_BLOCK)]
    ends = list(accumulate(map(len, reply.blocks)))
    found: list[list[str]] = [[] for _ in ends]
    for word in _WORD.finditer("".join(reply.blocks)):
        found[bisect_right(ends, word.start())].append(word[0].casefold())
    return found


def _joined(blocks: Sequence[list[str]]) -> list[list[str]]:
    """The blocks, each of fewer than FEWEST_WORDS with what follows it; the last with what precedes it."""
    found: list[list[str]] = []
    for block in blocks:
        if found and len(found[-1]) < FEWEST_WORDS:
            found[-1] += block
        elif block:
            found.append(list(block))
    if len(found) > 1 and len(found[-1]) < FEWEST_WORDS:
        last = found.pop()
        found[-1] += last
    return found
