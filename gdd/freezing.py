"""Which weights of a UNet stay frozen: policies are data, resolved once to a list of parameter
names.

GDD-I (paper section 4) freezes the convolutions and the attention output inside UNet blocks and
trains what is left: first and last convolution, norms, the noise embedding's affine, skip
convolutions, qkv, embeddings. A pattern that begins with `!` takes back what earlier ones froze.
"""

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

_BLOCK = ("*_block*", "*_in[01]", "*_up", "*_down")  # UNet blocks, and not aux_up or aux_down

POLICIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "gdd-i": tuple(
        f"{block}.{layer}.*" for block in _BLOCK for layer in ("conv0", "conv1", "proj")), }
# the narrower rule of the official loss file: convolutions of up and down blocks stay trained
POLICIES["official-loss-rule"] = tuple(
    pattern for pattern in POLICIES["gdd-i"] if "_up" not in pattern and "_down" not in pattern)
# what gdd-i trains, and trains what it freezes
POLICIES["inverse-gdd-i"] = ("*", *(f"!{pattern}" for pattern in POLICIES["gdd-i"]))
POLICIES["norm-only"] = ("*", "!*norm*")  # freezes all but the group norms
POLICIES["gdd-i+qkv"] = POLICIES["gdd-i"] + tuple(f"{block}.qkv.*" for block in _BLOCK)
POLICIES["gdd-i+qkv+skip"] = POLICIES["gdd-i+qkv"] + tuple(f"{block}.skip.*" for block in _BLOCK)


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` did: names of frozen parameters, and how many weights of how many."""

    names: tuple[str, ...]
    frozen: int
    total: int
    blocks: Mapping[str, tuple[int, int]]  # (frozen, total) of each block, such as enc.8x8_block0

    @property
    def share(self) -> float:
        return self.frozen / self.total

    def __str__(self) -> str:
        return f"{self.frozen:,} of {self.total:,} weights frozen ({self.share:.1%})"


def freeze(network: nn.Module, policy: str) -> FreezeReport:
    """Set `requires_grad` of every parameter by `policy`: a name of POLICIES, or comma-separated
    patterns to freeze.

    Raises ValueError if a pattern of the user's own matches no parameter; it shows the nearest
    names.
    """
    names = [name for name, _ in network.named_parameters()]
    patterns = POLICIES[policy] if policy in POLICIES else tuple(
        part.strip() for part in policy.split(","))
    frozen: set[str] = set()
    for pattern in patterns:
        matched = set(fnmatch.filter(names, pattern.removeprefix("!")))
        frozen = frozen - matched if pattern.startswith("!") else frozen | matched
    if policy not in POLICIES:
        for pattern in patterns:
            if not fnmatch.filter(names, pattern.removeprefix("!")):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
                raise ValueError(
                    f"freeze must be one of {', '.join(POLICIES)} or patterns of parameter names; "
                    f"{pattern!r} matches none; nearest: {', '.join(near)}")
    blocks: dict[str, tuple[int, int]] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parts = name.removeprefix("model.").split(".")
        block = ".".join(parts[:2]) if parts[0] in ("enc", "dec") else parts[0]
        held, total = blocks.get(block, (0, 0))
        blocks[block] = held + parameter.numel() * (name in frozen), total + parameter.numel()
    held, total = (sum(column) for column in zip(*blocks.values(), strict=True))
    return FreezeReport(tuple(sorted(frozen)), held, total, blocks)
