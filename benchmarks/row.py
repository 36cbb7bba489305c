"""One measurement: ours beside theirs, what was wanted, and why it falls short where it does."""

from dataclasses import dataclass

RATES = ("GFLOP/s", "images/s")  # units in which more is better


@dataclass(frozen=True)
class Row:
    """A line of results.csv; the machine's columns are added where it is written."""

    work: str
    against: str  # the peer with its version, or what the plain way is called
    ours: float | None = None
    theirs: float | None = None  # None where the peer is not installed
    unit: str = "s"  # or bytes, or one of RATES
    target: float | None = None  # the ratio wanted
    at_most: float | None = None  # or the most that ours may be, in its unit
    error: float | None = None  # how far the two results lie apart, relative to theirs' scale
    reason: str = ""  # what holds it back; shown only where the target is missed
    bar: float | None = None  # the least ratio that passes: half of what was measured, or less

    @property
    def ratio(self) -> float | None:
        """How many times as fast, or as small, ours is."""
        if self.ours is None or self.theirs is None:
            return None
        return self.ours / self.theirs if self.unit in RATES else self.theirs / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one, or without a measurement."""
        if self.at_most is not None and self.ours is not None:
            return self.ours <= self.at_most
        if self.target is None or self.ratio is None:
            return None
        return self.ratio >= self.target

    @property
    def passes(self) -> bool:
        """Whether the bar holds, if there is one."""
        return self.bar is None or self.ratio is None or self.ratio >= self.bar
