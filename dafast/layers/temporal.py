"""Attention over time, between the frames of a clip, as in Video-Depth-Anything."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import flash_attention

_HEADS = 8
_GROUPS = 32
_CHUNK = 1 << 15
"""Tokens that take part at a time without gradients: the hidden layer is eight times as wide."""


def position_code(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids of the places in a clip.

    Args:
        frames: Number of places T.
        width: Number of channels C, even.
        device: Of the result.

    Returns:
        (T, C), float32: sines in the even channels, cosines in the odd ones.
    """
    place = torch.arange(frames, device=device, dtype=torch.float32)
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angles = place[:, None] * torch.exp(even * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class FrameCache:
    """The states of earlier frames, for a stream that sees one frame at a time.

    A new frame attends to the states as they were when their frames were new. It sees the frames
    that the last frame of a window sees offline: the first one, one that is `gap` frames old, and
    the latest ones. Copies of the first frame stand for frames that are missing at the start.

    Args:
        frames: Length of the window, with the new frame.
        gap: Age in frames of the second frame of the window.
    """

    def __init__(self, frames: int = 32, gap: int = 41) -> None:
        self.frames, self.gap = frames, gap
        self.new: list[Tensor] = []  # the states of the new frame, by attention
        self._past: list[list[Tensor]] = []  # by frame, then by attention
        self._count = 0

    @classmethod
    def of(cls, seen: list[list[Tensor]]) -> FrameCache:
        """A cache whose new frame sees these states, as `seen` returns them."""
        cache = cls(len(seen) + 1)
        cache._past = seen
        return cache

    def seen(self) -> list[list[Tensor]]:
        """The states that the new frame sees, by frame, then by attention; [] for the first."""
        return [*self._past[:2], *self._past[3 - self.frames :]] if self._past else []

    def extend(self, state: Tensor) -> Tensor:
        """Adds the state of the new frame in the next attention of the network.

        Args:
            state: (P, 1, C), for P positions.

        Returns:
            The states of the window, (P, T, C); the new one is the last.
        """
        number = len(self.new)
        self.new.append(state)
        if not self._past:
            return state
        return torch.cat([*(states[number] for states in self.seen()), state], dim=1)

    def advance(self) -> None:
        """Ends a frame: the next one is new."""
        new, self.new = self.new, []
        self._past += [new] if self._past else [new] * self.frames
        if self._count + self.frames > self.gap + 1:
            del self._past[1]
        self._count += 1


class TemporalAttention(nn.Module):
    """Self-attention of each position over time.

    Args:
        width: Channels C, a multiple of 8 heads.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        """The last frames attend to all frames.

        Args:
            x: States of the frames to compute, (P, T, C) for P positions.
            states: Those of the whole window, (P, S, C); the last T are ``x``.

        Returns:
            (P, T, C).
        """
        frames, width = states.shape[1:]
        coded = states + position_code(frames, width, states.device).to(states.dtype)
        queries = coded if x.shape[1] == states.shape[1] else coded[:, -x.shape[1] :]
        q, k, v = self.to_q(queries), self.to_k(coded), self.to_v(coded)
        # Not `unflatten`, whose sizes torch.onnx.export(dynamo=False) fixes.
        q, k, v = (part.reshape(*part.shape[:2], _HEADS, width // _HEADS) for part in (q, k, v))
        out = flash_attention(q, k, v)
        return self.to_out[0](out.flatten(-2))


class _Geglu(nn.Module):
    """A linear layer whose output is gated: value * GELU(gate)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., hidden)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    """GEGLU and a linear layer; `net` has the checkpoint's numbers, 1 is its dropout of 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = {"0": _Geglu(width, 4 * width), "2": nn.Linear(4 * width, width)}
        self.net = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.net["2"](self.net["0"](x))


class TemporalBlock(nn.Module):
    """Two attentions over time and a feed-forward layer, each with a LayerNorm and a residual.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff = _FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        """(P, T, C) to (P, T, C); with a cache T is 1."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            state = norm(x)
            x = x + attention(state, state if cache is None else cache.extend(state))
        return x + self.ff(self.ff_norm(x))


class _GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that also takes groups of one value, as in an image of one position."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _TemporalTransformer(nn.Module):
    """The parts of a `TemporalModule`; a module of its own for the checkpoint's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _GroupNorm(math.gcd(_GROUPS, width), width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width)])
        self.proj_out = nn.Linear(width, width)
        # A new module changes nothing, so that training starts from the network without it.
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Tokens after the norm, (P, T, C), to what is added to the map."""
        return self.proj_out(self.transformer_blocks[0](self.proj_in(x), cache))


class TemporalModule(nn.Module):
    """Frames of a clip exchange information at each position of a map.

    Args:
        width: Channels of the map, a multiple of 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.temporal_transformer = _TemporalTransformer(width)

    def forward(self, x: Tensor, frames: int, cache: FrameCache | None = None) -> Tensor:
        """Maps to maps of the same shape.

        Args:
            x: (B * T, C, h, w), the frames of a clip one after the other.
            frames: T, the length of a clip.
            cache: Earlier frames of the only clip; T is 1 then.

        Returns:
            (B * T, C, h, w).
        """
        parts = self.temporal_transformer
        size = (-1, frames, x.shape[1], x.shape[2] * x.shape[3])
        tokens = parts.norm(x).reshape(size).permute(0, 3, 1, 2)
        shape = tokens.shape  # (B, h * w, T, C)
        tokens = tokens.flatten(0, 1)
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        if cache is not None or whole:  # a program is to hold for any number of positions
            out = parts(tokens, cache)
        else:  # positions do not depend on each other
            rows = max(1, _CHUNK // frames)
            out = torch.cat([parts(part) for part in tokens.split(rows)])
        return x + out.view(shape).permute(0, 2, 3, 1).reshape(x.shape)
