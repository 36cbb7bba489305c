"""Samplers by name: `heun:18`, `euler:18`, `one-step`, `k-step:4`, `two-step:0.8`. Apart from
torch, so that a wrong name is refused at once.
"""

from gdd.config import SIGMA_MAX, TrainConfig

_ALLOWED = "heun:STEPS, euler:STEPS, one-step, k-step:STEPS, two-step:SIGMA"


def read_sampler(spec: str) -> tuple[str, float]:
    """Kind and number: steps, or two-step's middle sigma; one-step is of 1. Raises ValueError."""
    kind, colon, text = spec.partition(":")
    try:
        if kind in ("heun", "euler"):
            value: float = int(text or 18)
        elif kind == "k-step":
            value = int(text)
        elif kind == "two-step":
            value = float(text or 0.8)
        elif kind == "one-step" and not colon:
            value = 1
        else:
            raise ValueError
        if not 0 < value < (SIGMA_MAX if kind == "two-step" else 1000):
            raise ValueError
    except ValueError:
        raise ValueError(f"sampler must be one of {_ALLOWED}; got {spec!r}") from None
    return kind, value


def network_calls(spec: str) -> int:
    """Calls of the network for an image (NFE) by the sampler of that name. Raises ValueError."""
    kind, value = read_sampler(spec)
    if kind == "two-step":
        return 2
    return 2 * int(value) - 1 if kind == "heun" else int(value)


def sampler_of(config: TrainConfig) -> str:
    """What a run's network is sampled with: a teacher by EDM's 18 steps, a generator as it was
    trained."""
    return "heun:18" if config.objective == "edm" else config.sampler
