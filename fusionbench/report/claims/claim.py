"""What a claim is: a sentence, and the one inequality on a difference that it asserts.

All numbers are points: percent of the examples for a single task, hundredths of the way from
chance to perfect for several tasks.
"""

from dataclasses import dataclass
from enum import StrEnum


class Relation(StrEnum):
    """What is said of the difference, method minus reference."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NOT_WORSE = "not worse"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper that can be tested."""

    id: str
    sentence: str
    method: str
    relation: Relation
    than: str
    tasks: tuple[str, ...]
    """Names or globs of tasks, a skill such as `fine`, or `suite`."""
    more_than_on: tuple[str, ...] = ()
    """If given, the claim is about the difference on `tasks` less that on these."""
    by: float = 0.0
    """`by_at_least` of better and worse, `within` of the other two; in points."""
    source: str = ""
    evidence: str = ""
    """How far the sentence was read at its source: `first-hand`, `second-hand`, ..."""
    reported: str = ""
    """The numbers that the paper gives for it, in its own regime."""
    note: str = ""

    @property
    def low(self) -> float:
        """Lower end of the differences that the claim allows, in points."""
        if self.relation is Relation.BETTER:
            return self.by
        return float("-inf") if self.relation is Relation.WORSE else -self.by

    @property
    def high(self) -> float:
        """Upper end, in points."""
        if self.relation is Relation.WORSE:
            return -self.by
        return self.by if self.relation is Relation.EQUIVALENT else float("inf")

    @property
    def asks(self) -> str:
        """The inequality in symbols: `> 0`, `>= 0.5`, `-1 to 1`."""
        if self.relation is Relation.EQUIVALENT:
            return f"{-self.by:g} to {self.by:g}"
        if self.relation is Relation.BETTER:
            return f">= {self.by:g}" if self.by else "> 0"
        if self.relation is Relation.WORSE:
            return f"<= {-self.by:g}" if self.by else "< 0"
        return f"> {-self.by:g}"
