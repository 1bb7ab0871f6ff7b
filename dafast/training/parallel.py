"""A model on several processes: a copy on each (DDP), or a part on each (FSDP2).

Checkpoints and exported weights hold whole tensors: a sharded run can continue in one process, and
the other way round.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from dafast.distributed import World
from dafast.layers import Block

Model = TypeVar("Model", bound=nn.Module)


def replicate(network: nn.Module, world: World) -> nn.Module:
    """The network as one of equal copies, whose gradients are averaged."""
    if world.size == 1:
        return network
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids)


def shard(model: nn.Module, world: World) -> None:
    """Divides the parameters among the processes, in place (FSDP2's `fully_shard`).

    Each process keeps a part of every parameter, gradient and moment. It gathers the weights of a
    block's attention and MLP while it computes with them, the others for the whole step, in
    float32, so that the result is DDP's. Call forward on the model itself; its parameters are new
    objects afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of in-place changes of module outputs; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # It takes only contiguous kernels; images and maps may still be channels-last.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in model.modules():
        if isinstance(module, Block):
            # Without its norms, which stay with the model: a block computes the norm of the next.
            fully_shard([module.attn, module.mlp], mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all of its parts. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tree: Any, world: World) -> Any:
    """Nested containers with their sharded tensors made whole, on the CPU of the main process.

    Every process must call it; the others get None instead of the tensors.
    """

    def one(tensor: DTensor) -> Tensor | None:
        # `full_tensor` would make the whole tensor on every process. FSDP2 divides the first
        # dimension, and the last parts may be shorter.
        part = tensor.to_local()
        padded = part.new_zeros(-(-len(tensor) // world.size), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(world.size)] if world.is_main else None
        dist.gather(padded, parts)
        return torch.cat(parts)[: len(tensor)].cpu() if parts else None

    return tree_map_only(DTensor, one, tree)


def spread(value: Any, like: Tensor) -> Any:
    """A whole tensor, divided like `like` where `like` is sharded and of the same shape."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({k: spread(v, own[k]) if k in own else v for k, v in state.items()})


class WholeModel(Generic[Model]):
    """A model with all of its weights on the main process, to evaluate and to save.

    Args:
        model: The model, before it is sharded.
        sharded: Whether it will be sharded. The main process then keeps a second, whole copy.
        world: The processes.
    """

    def __init__(self, model: Model, sharded: bool, world: World) -> None:
        self.model, self.sharded, self.world = model, sharded, world
        self.copy: Model = model
        if sharded and world.is_main:
            self.copy = copy.deepcopy(model).requires_grad_(False)

    def __call__(self) -> Model:
        """The current model. Every process must call it; only the main one may use the result."""
        if self.sharded:
            state = gather(self.model.state_dict(), self.world)
            if self.world.is_main:
                self.copy.load_state_dict(state)
        return self.copy
