"""Memory of a training step, without computing it: the step's own code is run on tensors that have
shapes and no values."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gdd.backbones import Backbone
from gdd.config import ONE_CPU, TrainConfig
from gdd.denoiser import Denoiser
from gdd.losses import Distillation
from gdd.training.batch import Batch
from gdd.training.engine import Engine, StepMetrics
from gdd.training.trainer import init_state, models_of, take_step


def estimate(
    config: TrainConfig,
    network: Mapping[str, Any],
    backbones: Sequence[Backbone] = (),
    distance: nn.Module | None = None,
    *,
    micro_batch_size: int,
) -> dict[str, int]:
    """Bytes one process needs for the config's batch, by what they are for, with micro-batches of
    so many images; nothing is sharded.

    `network` is the teacher's config. What PyTorch itself takes, a few hundred MB, and its
    workspaces come on top.
    """
    # two micro-batches, so that the second one meets the first one's gradients; or all, where the
    # features of their fakes are kept for the discriminator
    parts = -(-config.batch_size // micro_batch_size)
    parts = parts if config.adversarial and config.reuse_fakes else min(parts, 2)
    group = config.d_batch_norm_images if config.adversarial else 0
    config = replace(config, batch_size=micro_batch_size * parts, d_batch_norm_images=group)
    # BatchNorm's forward mode leaves tensors on "meta" (PyTorch 2.15)
    on_cpu = functorch.patch(fake_tensor_prefer_device_type="cpu")
    with warnings.catch_warnings(), on_cpu, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # copies of networks do, harmlessly
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        engine = _Dry(config, replace(ONE_CPU, micro_batch_size=micro_batch_size))
        start = Denoiser.from_config(network)
        through = [_without_values(module, mode) for module in backbones]
        lpips = _without_values(distance, mode) if distance else None
        state = init_state(config, start, through, engine)
        state.images_seen = config.batch_size * config.r1_interval  # a step with R1
        models = models_of(state, start, through, lpips)
        if models.distillation:
            models = replace(models, distillation=_DryDistillation(**vars(models.distillation)))
        networks = _tensors(start, state.generator, state.ema)
        judges = _tensors(*through, *(m for m in (lpips, state.discriminator) if m))
        peak = Peak([*networks, *judges])
        before = peak.now
        n, shape = config.batch_size, (start.channels, start.resolution, start.resolution)
        labels = torch.zeros(n, dtype=torch.long) if start.label_dim else None
        real, latents, d_latents, noise = (torch.zeros(n, *shape) for _ in range(4))
        batch = Batch(real, labels, latents, d_latents, noise, torch.ones(n), torch.zeros(n, 3))
        with peak:
            take_step(state, models, batch)
        optimizers = [state.optimizer, *([state.d_optimizer] if state.d_optimizer else ())]
        trained = _bytes(p for opt in optimizers for p in opt.param_groups[0]["params"])
        return {
            "generator, its average, the teacher": _bytes(networks),
            "discriminator, what it and the losses look through": _bytes(judges),
            "Adam's moments": 2 * trained,
            "gradients and activations, at most": peak.most - before, }


class _Dry(Engine):
    def to_device(self, module: Any) -> Any:
        return module

    def step(self, optimizer: torch.optim.Optimizer, metrics: StepMetrics) -> dict[str, float]:
        return dict.fromkeys(metrics, 0.0)  # there are no values to read, nor to step by


class _DryDistillation(Distillation):
    def rows(self, near: Tensor) -> Tensor:
        return torch.arange(len(near))  # which ones, there are no values to tell: at most all


def _without_values(module: nn.Module, mode: FakeTensorMode) -> Any:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter.detach())
                part._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
    return module


def _tensors(*modules: nn.Module) -> list[Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is entered: `now`, and `most`
    at any time."""
    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()
        for tensor in known:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen.add(key)
            finalize(storage, self._free, key, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out
