"""What a count that others have published says, as 11 of 15 items: its test, its interval, and what it could show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from konkyo.errors import KonkyoError
from konkyo.survey.power import critical_count, exact_power, needed_count
from konkyo.survey.preference import SignTest
from konkyo.utils.files import plain

RATES = (0.7, 0.8, 0.9)
"""The rates that power is told of."""


@dataclass(frozen=True)
class Counts:
    """The count of items that were won, with what so many items and raters could have shown."""

    test: SignTest
    needed: int | None
    """So many of the items had to be won for p < 0.05; None: not even all of them would do."""
    power: tuple[tuple[float, float, int | None], ...]
    """For every rate at which items are won: (rate, power with these items, from how many items on it is 80 %)."""
    of_item: tuple[tuple[int, int | None], ...]
    """(raters, votes): of so many raters, so many had to agree on one item for p < 0.05."""

    @classmethod
    def of(cls, wins: int, n: int, raters: Sequence[int] = (), rates: Sequence[float] = RATES) -> Counts:
        """Makes it of `wins` of `n` items. KonkyoError: no such count."""
        if not 0 <= wins <= n or n < 1 or any(count < 1 for count in raters):
            raise KonkyoError(
                f"a count is WON/ITEMS with 1 item or more, as in 11/15, of 1 rater or more; got {wins}/{n}"
                + (f" of {', '.join(map(str, raters))} raters" if raters else "")
            )
        return cls(
            SignTest.of(wins, n - wins),
            critical_count(n),
            tuple((rate, exact_power(n, rate), needed_count(rate)) for rate in rates),
            tuple((count, critical_count(count)) for count in raters),
        )

    @classmethod
    def parse(cls, text: str, raters: Sequence[int] = (), rates: Sequence[float] = RATES) -> Counts:
        """Makes it of text, as in "11/15". KonkyoError: no such text."""
        won, slash, n = text.partition("/")
        if not slash or not (won.strip().isdecimal() and n.strip().isdecimal()):
            raise KonkyoError(f"a count is WON/ITEMS, as in 11/15; got {text!r}")
        return cls.of(int(won), int(n), raters, rates)

    def lines(self, lang: str = "en") -> list[str]:
        """Returns what it says in sentences, in "en" or "ja"."""
        from konkyo.survey.sentences import of_counts

        return of_counts(self, lang)

    def description(self) -> dict[str, Any]:
        """Returns everything as plain JSON values."""
        return plain(asdict(self))  # type: ignore[no-any-return]
