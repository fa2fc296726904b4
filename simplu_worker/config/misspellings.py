"""Find misspelt variables in an environment that other programs share: those that resemble a variable of ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from simplu_worker.config.environment import SECRETS
from simplu_worker.config.settings import VARIABLES

NAME_MAX_LENGTH: Final = 64  # longer than every variable of ours with room for mistakes
EDITS_MAX: Final = 3
# A shorter first word, such as HTTP or LOG, must be spelt as ours: HTTPS_PORT is of another program.
FUZZY_FIRST_WORD_LENGTH: Final = 5
ABBREVIATION_MIN_LENGTH: Final = 3

AWS_VARIABLES: Final = frozenset(
    {
        "AWS_CONFIG_FILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_DYNAMODB",
        "AWS_ENDPOINT_URL_KINESIS",
        "AWS_ENDPOINT_URL_SQS",
        "AWS_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
    }
)
KNOWN_VARIABLES: Final = AWS_VARIABLES | {
    *VARIABLES,
    *SECRETS,
    *(f"{name}_FILE" for name in SECRETS),
}
# AWS_ENDPOINT_URL_SNS and others of three letters are variables of other programs.
_CANDIDATES: Final = sorted(KNOWN_VARIABLES - {"AWS_ENDPOINT_URL_SQS"})


class Misspelling(NamedTuple):
    """A variable that the worker ignores, and the one that is probably meant."""

    name: str
    nearest: str

    def __str__(self) -> str:
        return (
            f"{self.name}: expected the name of a variable, got one that the worker ignores; "
            f"did you mean {self.nearest}?"
        )


def find_misspellings(names: Iterable[str]) -> Iterator[Misspelling]:
    """Yield, for each of *names* that is no variable of ours but resembles one, the one that it resembles most."""
    for name in names:
        if name not in KNOWN_VARIABLES and (nearest := _nearest(name)) is not None:
            yield Misspelling(name, nearest)


def _nearest(name: str) -> str | None:
    if len(name) > NAME_MAX_LENGTH:
        return None
    spelling = re.sub(r"[-.]", "_", name.upper())
    near = [known for known in _CANDIDATES if _is_near(spelling, known)]
    return min(near, key=lambda known: edit_distance(spelling, known), default=None)


def _is_near(name: str, known: str) -> bool:
    """Return whether *name* is *known* with a few edits, or with words abbreviated or left out."""
    word, rest = _split_first_word(name)
    known_word, known_rest = _split_first_word(known)
    if not rest or name.startswith(f"{known}_"):  # such as DATABASE_PORT_5432_TCP of Kubernetes
        return False
    if word != known_word and (len(known_word) < FUZZY_FIRST_WORD_LENGTH or edit_distance(word, known_word) > 1):
        return False
    edits_max = min(EDITS_MAX, max(1, len(known_rest) // 4))
    return edit_distance(name, known) <= edits_max or _is_abbreviation(rest.split("_"), known_rest.split("_"))


def _split_first_word(name: str) -> tuple[str, str]:
    word, _, rest = name.partition("_")
    return word, rest


def _is_abbreviation(words: list[str], known_words: list[str]) -> bool:
    """Return whether each of *words* abbreviates one of *known_words*, in their order."""
    remaining = iter(known_words)
    return all(any(_abbreviates(word, known) for known in remaining) for word in words)


def _abbreviates(word: str, known: str) -> bool:
    """Return whether *word* is *known*, or its first letter and some of the others."""
    if word == known:
        return True
    if len(word) < ABBREVIATION_MIN_LENGTH or word[0] != known[0]:
        return False
    letters = iter(known)
    return all(letter in letters for letter in word)


def edit_distance(first: str, second: str) -> int:
    """Return the least number of letters to insert, delete, replace, or exchange with their neighbours."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    pairs = ["", *(first_letter + second_letter for first_letter, second_letter in pairwise(second))]
    for at, letter in enumerate(first, 1):
        before, last, row = row, before, [at]
        for column, other in enumerate(second, 1):
            cost = min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != other))
            if at > 1 and column > 1 and letter + first[at - 2] == pairs[column - 1]:
                cost = min(cost, last[column - 2] + 1)
            row.append(cost)
    return row[-1]
