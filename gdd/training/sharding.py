"""Weights that are spread over processes (FSDP): how they are split, and whole tensors out of the
shares and back.

PyTorch's sharding takes most of a second to import, so that is left until it is needed.
"""

from typing import Any

from torch import Tensor

from gdd.denoiser import Denoiser


def shard(denoiser: Denoiser, device_type: str, processes: int) -> Denoiser:
    """Leave a share of each weight to each process, gathered block by block while it computes;
    gradients are averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device_type, (processes, ))
    blocks = [
        block for part in ("enc", "dec") for block in denoiser.model.get_submodule(part).children()]
    for module in (*blocks, denoiser):
        # the last module too, for calls without a backward pass
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return denoiser


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor


def local(tensor: Any) -> Tensor:
    """The share of a tensor that this process holds: all of it, if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Any) -> Tensor:
    """The whole of a tensor; if it is sharded, every process must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(tensor: Tensor, model: Any) -> Tensor:
    """A whole tensor, laid out over processes as `model` is."""
    if not is_sharded(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def whole(denoiser: Denoiser) -> Denoiser:
    """The denoiser itself, or of a sharded one a whole copy; then every process must ask."""
    state = denoiser.state_dict()
    if not any(map(is_sharded, state.values())):
        return denoiser
    copy = Denoiser.from_config(denoiser.config, epsilon=denoiser.epsilon)
    copy.load_state_dict({name: full(tensor) for name, tensor in state.items()}, assign=True)
    return copy.eval().requires_grad_(False)
