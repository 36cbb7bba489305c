"""What a step is computed on: devices, precision, processes and micro-batches. Nothing of the
method is in here.

Every process takes an equal share of a step's images and walks through it in micro-batches. Losses
are divided by the size of the whole batch, so gradients only have to be added up: over
micro-batches as they come, over processes once per step. A wrapper around each network would do the
same, and forbid what the losses need: several calls, two networks in one loss, second derivatives.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn

from gdd.config import ONE_CPU, Hardware, TrainConfig
from gdd.denoiser import Denoiser
from gdd.training.sharding import is_sharded, local, shard


class StepMetrics(dict[str, Tensor]):
    """A step's metrics, as means over the whole batch that micro-batches and processes add to."""
    def __init__(self, batch_size: int):
        super().__init__()
        self.batch_size = batch_size

    def mean(self, name: str, per_image: Tensor) -> Tensor:
        """This part (B,) of a batch's mean loss; added to the metric."""
        value = per_image.sum() / self.batch_size
        self[name] = self.get(name, 0) + value.detach()
        return value

    def sign(self, name: str, logits: Sequence[Tensor]) -> None:
        """The mean sign of the images' mean logits over all backbones."""
        signs = torch.stack([x.mean(dim=1).sign() for x in logits]).mean(dim=0)  # (B,)
        self.mean(name, signs)


class Engine:
    """Devices, processes and micro-batches of a run on given hardware; starts the processes, or
    joins those that torchrun or SLURM started."""
    def __init__(self, config: TrainConfig, hardware: Hardware = ONE_CPU):
        hardware.validate()
        self.config, self.hardware = config, hardware
        kind = hardware.accelerator
        if kind == "auto":
            kind = "mps" if torch.backends.mps.is_available() else "cpu"
            kind = "cuda" if torch.cuda.is_available() else kind
        # only fp16 needs gradients scaled; the networks themselves know their autocast
        fp16 = config.precision == "fp16"
        self.precision = MixedPrecision("16-mixed", kind) if fp16 else Precision()
        # torchrun tells how many processes a machine has, SLURM how many tasks
        local = _from_environment("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
        devices = hardware.devices or local or 1
        machines = _from_environment("SLURM_NNODES") or _from_environment("WORLD_SIZE") // devices
        nodes = hardware.nodes or machines or 1
        alone = devices * nodes == 1
        plugins: list[Any] = [self.precision]
        if alone:  # also where a notebook runs in a SLURM job of eight tasks
            plugins.append(LightningEnvironment())
        strategy = "auto" if alone else "ddp"
        self.fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy,
                             plugins=plugins)
        self.fabric.launch()
        self.world, self.rank = self.fabric.world_size, self.fabric.global_rank
        self.device = self.fabric.device
        self._check_batch()
        # fp32 means fp32, as for the paper's runs
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def _check_batch(self) -> None:
        config = self.config
        size, group = config.batch_size, config.d_batch_norm_images or config.batch_size
        if config.precision == "fp16" and self.hardware.strategy == "fsdp":
            raise ValueError("precision fp16 goes with strategy ddp; got fsdp")
        if size % self.world:
            raise ValueError(
                f"batch_size must be a multiple of the {self.world} processes; got {size}")
        share = size // self.world
        micro = min(self.hardware.micro_batch_size or share, share)
        if config.adversarial and (share % group or (micro < share and micro % group)):
            raise ValueError(
                f"d_batch_norm_images must divide the {micro} images of a pass, for the "
                f"discriminator's BatchNorm looks at {group} at once; give it, or another "
                f"micro_batch_size; got {config.d_batch_norm_images}")
        self.micro_batch_size = micro

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.precision, "scaler", None)

    def share(self) -> slice:
        """This process's images of a batch."""
        size = self.config.batch_size // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def micro_batches(self, size: int) -> Iterator[slice]:
        """Micro-batches of a share of `size` images."""
        for start in range(0, size, self.micro_batch_size):
            yield slice(start, min(start + self.micro_batch_size, size))

    def to_device(self, module: Any) -> Any:
        """The module, on this process's device."""
        return self.fabric.to_device(module)

    def shard(self, denoiser: Denoiser) -> Denoiser:
        """Under fsdp, spread its weights over the processes."""
        if self.hardware.strategy == "fsdp" and self.world > 1:
            return shard(denoiser, self.device.type, self.world)
        return denoiser

    def compiled(self, network: nn.Module) -> Callable[..., Tensor]:
        """The network as the steps call it: compiled if asked for, but never past a listening
        hook."""
        if not self.hardware.compile:
            return network
        compiled, modules = torch.compile(network), list(network.modules())

        def call(*arguments: Any, **options: Any) -> Tensor:
            hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
            return (network if hooked else compiled)(*arguments, **options)

        return call

    def zero_grad(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Before a step's first backward pass."""
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to those that are there; fp16 scales them."""
        self.fabric.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, metrics: StepMetrics) -> dict[str, float]:
        """Add up gradients and metrics over processes and step; returns the metrics as numbers.

        Raises FloatingPointError in every process, before any weight changes, if a metric or
        gradient of any process is not finite. Under fp16 gradients may overflow: the scaler leaves
        out such a step, and scales less.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        shares = [share for gradient in gradients if (share := local(gradient)).numel()]
        largest = torch.stack(torch._foreach_norm(shares, ord=math.inf)).max()
        values = torch.stack([*metrics.values(), largest])
        if self.world > 1:
            self._add_up([values, *(g for g in gradients if not is_sharded(g))])
            for gradient in filter(is_sharded, gradients):
                local(gradient).mul_(self.world)  # they come averaged
        *found, steepest = values.tolist()
        numbers = dict(zip(metrics, found, strict=True))
        checked = numbers if self.scaler else numbers | {"the gradient": steepest}
        for name, value in checked.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value}")
        self.precision.optimizer_step(optimizer)
        return numbers

    def _add_up(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        totals = flat.split([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """Process zero's value, in every process."""
        return self.fabric.broadcast(value) if self.world > 1 else value

    def on_rank_zero(self, action: Callable[[], None]) -> None:
        """Let process zero act on files; its ValueError or OSError is raised in every process, so
        that none waits for it."""
        problem = None
        if self.is_rank_zero:
            try:
                action()
            except (ValueError, OSError) as error:
                problem = error
        if problem := self.broadcast(problem):
            raise problem

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        return bool(self.fabric.all_reduce(raised, reduce_op="max"))


def _from_environment(*names: str) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)
