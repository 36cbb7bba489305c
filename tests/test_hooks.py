"""What a hook sees, in which order, and what it must refuse because it cannot see it."""

from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from analysis.hooks import first_tensor, record


class InPlace(nn.Module):
    """Changes its convolution's output in place right after the hook, as EDM's blocks do."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.unused = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.conv(x).add_(100.0)


@dataclass
class Answer:
    label: str
    maps: torch.Tensor


class Tuples(nn.Module):
    """Runs `second` before `first`, and `second` twice; each returns its tensor in another way."""
    class Dataclass(nn.Module):
        def forward(self, x):
            return Answer("a", x)

    class Nested(nn.Module):
        def forward(self, x):
            return {"none": None, "found": (x + 1, x)}

    class Nothing(nn.Module):
        def forward(self, x):
            return "text"

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = self.Dataclass(), self.Nested(), self.Nothing()

    def forward(self, x):
        self.second(x)
        self.first(x)
        self.third(x)
        return self.second(x)["found"][0]


X = torch.zeros(1, 1, 4, 4)


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


def refused(module, pattern, message, kind=ValueError, x=X):
    with pytest.raises(kind, match=message), record(module, pattern, torch.mean):
        module(x)
    if not isinstance(module, torch.jit.ScriptModule):
        assert hooks(module) == 0


def test_records_before_in_place_changes_and_leaves_no_hook():
    module, x = InPlace(), torch.randn(2, 1, 4, 4)
    with torch.no_grad(), record(module, "con*", torch.mean) as tape:
        out = [module(x).mean(), module(2 * x).mean()]
    assert torch.allclose(torch.stack(tape["conv"]) + 100, torch.stack(out))
    assert hooks(module) == 0


def test_hooks_are_removed_when_the_code_inside_fails():
    module = InPlace()
    with pytest.raises(ZeroDivisionError), record(module, "conv", torch.mean):
        _ = 1 / 0
    assert hooks(module) == 0


def test_names_come_in_order_of_execution_and_outputs_may_be_nested():
    module, x = Tuples(), torch.ones(1, 1, 2, 2)
    with record(module, ["first", "second", "second"], torch.mean) as tape:
        module(x)
    assert {name: [float(v) for v in found] for name, found in tape.items()} == {
        "second": [2, 2], "first": [1]}  # yapf: disable
    assert list(tape) == ["second", "first"]
    refused(module, "third", "third returns no tensor but str", x=x)
    assert first_tensor([(), {}, [None, (3, x)]]) is x
    assert first_tensor((1, "a", None)) is None


def test_what_fits_nothing_or_is_never_called_is_refused():
    refused(
        InPlace(), "encoder*", r"'encoder\*' matches no submodule; nearest: conv, unused; what "
        "a module computes by functions")
    refused(nn.ReLU(), "conv", "it has no submodules")
    refused(InPlace(), ["conv", "nothing"], "'nothing' matches no submodule")
    refused(InPlace(), ["conv", "unused"], "never called while recording: unused; what",
            RuntimeError)
    module = InPlace()
    with record(module, "*", torch.mean) as tape:  # of a wider pattern what is called counts
        module(X)
    assert list(tape) == ["conv"]


def test_layers_whose_weights_go_to_a_function_are_refused():
    attention, x = nn.MultiheadAttention(8, 2), torch.zeros(1, 1, 8)
    outer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)).eval()
    outer[0].self_attn = attention
    refused(outer, "*.out_proj", "never called while recording: 0.self_attn.out_proj", RuntimeError,
            x)
    with torch.inference_mode(), record(outer, ["0.linear*", "*.self_attn"], tuple_shape) as tape:
        outer(x)  # without hooks, torch's fused path would call none of them
    assert tape == {"0.self_attn": [(1, 1, 8)], "0.linear1": [(1, 1, 16)], "0.linear2": [(1, 1, 8)]}


def tuple_shape(x):
    return tuple(x.shape)


def test_a_compiled_module_is_refused():
    refused(torch.compile(InPlace()), "conv", "OptimizedModule is compiled")
    inside = nn.Sequential(InPlace(), nn.Conv2d(2, 1, 1))
    inside[0].compile()
    refused(inside, "*conv", "0 is compiled")
    with record(inside, "1", tuple_shape) as tape:  # what lies beside it is seen
        inside[1](torch.zeros(1, 2, 4, 4))
    assert tape == {"1": [(1, 1, 4, 4)]}
    module = InPlace()
    compiled = torch.compile(module, backend="eager")
    compiled(X)
    with pytest.raises(RuntimeError, match="never called"), record(module, "conv", tuple_shape):
        compiled(X)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_scripted_or_traced_module_is_refused():
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    for module in (torch.jit.script(plain), torch.jit.trace(plain, X)):
        refused(module, "0", "Module is scripted or traced")
        outer = nn.Sequential(module, nn.ReLU())
        refused(outer, "0.1", "0 is scripted or traced")
        refused(outer, "0", "0 is scripted or traced")
        with record(outer, "1", tuple_shape) as tape:  # what lies beside it is seen
            outer(X)
        assert tape == {"1": [(1, 2, 4, 4)]}


def test_a_graph_of_torch_fx_is_seen():
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()))
    with record(module, "*", tuple_shape) as tape:
        module(X)
    assert tape == {"0": [(1, 2, 4, 4)], "1": [(1, 2, 4, 4)]}


@pytest.mark.parametrize(("name", "pattern", "shape"), [
    ("test_efficientnet", "blocks.*.conv_pwl", (2, 24, 16, 16)),
    ("test_vit2", "blocks.*.attn", (2, 17, 64))])  # yapf: disable
def test_networks_of_timm_are_seen_in_order(name, pattern, shape):
    network = timm.create_model(name, pretrained=False).eval()
    with torch.inference_mode(), record(network, pattern, tuple_shape) as tape:
        network(torch.zeros(2, 3, 64, 64))
    assert len(tape) > 1
    assert next(iter(tape.values())) == [shape]
    assert hooks(network) == 0
