"""How far one text's short strings are from another's: the Jensen-Shannon divergence of their n-grams."""

from collections import Counter

import numpy as np
from scipy.spatial.distance import jensenshannon


def ngrams(texts, n):
    """How often each string of n characters occurs within the texts; none reaches from one text into the next."""
    return Counter(text[i : i + n] for text in texts for i in range(len(text) - n + 1))


def divergence(first, second):
    """The Jensen-Shannon divergence of two Counters' relative frequencies in nats: 0 if they agree, at most log 2."""
    for name, counted in (("first", first), ("second", second)):
        if not counted:
            raise ValueError(f"{name} holds no n-grams: its texts are shorter than n; give longer ones")
    strings = sorted(first.keys() | second.keys())  # in an order, and so with a sum, that every process has
    frequencies = [np.array([counted[string] for string in strings], float) for counted in (first, second)]
    return float(jensenshannon(*frequencies) ** 2)
