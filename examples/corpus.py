"""Texts as windows of characters: where they come from, how they are split, and their one-hot code."""

import hashlib
import re
from collections import Counter

import torch
from torch.nn import functional

RARE = "\N{REPLACEMENT CHARACTER}"  # stands for every character that is not in the alphabet
FEWEST = 500  # windows in either part: fewer are no distribution to learn or to compare with


class NoCorpus(ValueError):
    """There is no text to learn from; says why and what helps."""


def documentation():
    """Training and held-out text: the topics of Python's own help(), every fifth of them held out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise NoCorpus(
            "this Python comes without pydoc_data, its documentation; give a text of yours by --text"
        ) from error
    held_out, train = {}, {}  # in order, each paragraph once: topics quote one another
    for place, name in enumerate(sorted(topics)):
        part = train if place % 5 else held_out
        part.update(dict.fromkeys(paragraphs(topics[name])))
    return " ".join(paragraph for paragraph in train if paragraph not in held_out), " ".join(held_out)


def paragraphs(topic):
    """Those of a documentation topic, each on one line, without the rows of tables and the rules under headings."""
    prose = re.sub(r"^ *(?:[|+].*|([-=~*^\"#.])\1{3,}) *$", "", topic, flags=re.MULTILINE)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", prose) if paragraph.strip()]


def text_file(path):
    """Training and held-out text: the first four fifths of a file in UTF-8, and the rest."""
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise NoCorpus(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it first") from error
    except OSError as error:
        raise NoCorpus(f"{path} cannot be read: {error.strerror}; give a text file in UTF-8") from error
    return text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]


class Corpus:
    """Windows of `length` characters, each beginning with a word, of a training and of a held-out text.

    A character's code is its place in `alphabet`: the most frequent ones of the training text and, where there are more
    than `characters` or the held-out text has others, RARE for all the rest.
    """

    def __init__(self, train, held_out, length, characters):
        frequent = [character for character, _ in Counter(train).most_common()]
        if len(frequent) > characters or not set(held_out) <= set(frequent):
            frequent = [character for character in frequent if character != RARE][: characters - 1] + [RARE]
        self.alphabet, self.length = "".join(sorted(frequent)), length
        self.codes = {character: code for code, character in enumerate(self.alphabet)}
        self.fingerprint = hashlib.sha256(f"{train}\0{held_out}".encode()).hexdigest()
        self.rare = sum(character not in self.codes for character in train) / max(1, len(train))
        self.train, self.held_out = self.encode(train), self.encode(held_out)
        self.train_starts, self.held_out_starts = self.starts(train, "training"), self.starts(held_out, "held-out")

    def encode(self, text):
        rare = self.codes.get(RARE)
        return torch.tensor([self.codes.get(character, rare) for character in text])

    def starts(self, text, part):
        """Where words begin after which a whole window follows."""
        ends = len(text) - self.length
        places = [word.start() for word in re.finditer(r"(?<!\S)\S", text) if word.start() <= ends]
        if len(places) < FEWEST:
            raise NoCorpus(
                f"the {part} text has {len(text):,} characters: {len(places)} windows of {self.length} that begin with"
                f" a word, and {FEWEST} are needed; give a longer text or a shorter --length"
            )
        return torch.tensor(places)

    def draw(self, count):
        """Random windows of the training text, one-hot: (count, characters, length)."""
        starts = self.train_starts[torch.randint(len(self.train_starts), (count,))]
        return one_hot(self.train[starts[:, None] + torch.arange(self.length)], len(self.alphabet))

    def spread(self, part, count):
        """At most `count` windows as strings, evenly spread over the part "train" or "held_out"."""
        text, starts = getattr(self, part), getattr(self, f"{part}_starts")
        starts = starts[torch.linspace(0, len(starts) - 1, min(count, len(starts))).long()]
        return self.strings(text[starts[:, None] + torch.arange(self.length)])

    def strings(self, codes):
        """The windows' texts; `codes`: (windows, length)."""
        return ["".join(self.alphabet[code] for code in window) for window in codes.tolist()]

    def read(self, simplex):
        """The likeliest character at each place; `simplex`: (windows, characters, length), one-hot or a softmax."""
        return self.strings(simplex.argmax(1))


def one_hot(codes, characters):
    """Corners of the simplex: (windows, length) to (windows, characters, length)."""
    return functional.one_hot(codes, characters).transpose(1, 2).float()
