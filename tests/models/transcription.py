"""The published networks with plain functions, from their definitions.

Nothing of `dafast.models` and `dafast.layers` is used; ``state`` has published names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dafast.config import ModelConfig

State = Mapping[str, Tensor]


def linear(state: State, z: Tensor, name: str) -> Tensor:
    return F.linear(z, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, z: Tensor, name: str, eps: float) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def conv(state: State, z: Tensor, name: str, **options: int) -> Tensor:
    return F.conv2d(z, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def _up(z: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(z, size=tuple(size), mode="bilinear", align_corners=True)


def encoder(state: State, e: str, config: ModelConfig, x: Tensor, final_eps: float) -> list[Tensor]:
    """Images (B, 3, H, W) to the four taps, (B, C, rows, columns).

    Args:
        state: The weights.
        e: Prefix of the encoder's names.
        config: Sizes and taps.
        x: The images.
        final_eps: Epsilon of the last norm.
    """
    dim, heads, grid = config.embed_dim, config.num_heads, config.grid_size
    rows, columns = x.shape[2] // 14, x.shape[3] // 14
    tokens = conv(state, x, f"{e}.patch_embed.proj", stride=14).flatten(2).transpose(1, 2)
    tokens = torch.cat([state[f"{e}.cls_token"].expand(len(x), -1, -1), tokens], 1)
    table = state[f"{e}.pos_embed"]
    if (rows, columns) != (grid, grid):
        square = table[:, 1:].reshape(1, grid, grid, dim).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        square = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
        table = torch.cat([table[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    tokens = tokens + table
    taps = []
    for i in range(config.num_layers):
        b = f"{e}.blocks.{i}"
        qkv = linear(state, norm(state, tokens, f"{b}.norm1", 1e-6), f"{b}.attn.qkv")
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (dim // heads) ** 0.5).softmax(-1)
        out = linear(state, (weights @ v).transpose(1, 2).flatten(2), f"{b}.attn.proj")
        tokens = tokens + out * state[f"{b}.ls1.gamma"]
        hidden = F.gelu(linear(state, norm(state, tokens, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1"))
        tokens = tokens + linear(state, hidden, f"{b}.mlp.fc2") * state[f"{b}.ls2.gamma"]
        if i in config.out_indices:
            tap = norm(state, tokens, f"{e}.norm", final_eps)[:, 1:]
            taps.append(tap.transpose(1, 2).unflatten(2, (rows, columns)))
    return taps


def decoder(
    state: State,
    h: str,
    taps: Sequence[Tensor],
    mix: Callable[[int, Tensor], Tensor] = lambda number, z: z,
) -> Tensor:
    """The taps to the map that the outputs read, at the size of the images.

    Args:
        state: The weights.
        h: Prefix of the decoder's names.
        taps: Four, (B, C, rows, columns).
        mix: A temporal module, by number, on a map.
    """
    rows, columns = taps[0].shape[2:]
    maps = [conv(state, tap, f"{h}.projects.{i}") for i, tap in enumerate(taps)]
    for i, stride in ((0, 4), (1, 2)):
        r = f"{h}.resize_layers.{i}"
        weight, bias = state[f"{r}.weight"], state[f"{r}.bias"]
        maps[i] = F.conv_transpose2d(maps[i], weight, bias, stride=stride)
    maps[3] = conv(state, maps[3], f"{h}.resize_layers.3", stride=2, padding=1)
    maps[2], maps[3] = mix(0, maps[2]), mix(1, maps[3])
    maps = [conv(state, z, f"{h}.scratch.layer{i}_rn", padding=1) for i, z in enumerate(maps, 1)]

    def unit(z: Tensor, name: str) -> Tensor:
        hidden = F.relu(conv(state, F.relu(z), f"{name}.conv1", padding=1))
        return z + conv(state, hidden, f"{name}.conv2", padding=1)

    path = maps[3]
    for i in (4, 3, 2, 1):
        r = f"{h}.scratch.refinenet{i}"
        if i < 4:
            path = path + unit(maps[i - 1], f"{r}.resConfUnit1")
        path = unit(path, f"{r}.resConfUnit2")
        size = maps[i - 2].shape[2:] if i > 1 else [2 * n for n in path.shape[2:]]
        path = conv(state, _up(path, size), f"{r}.out_conv")
        path = mix(6 - i, path) if i > 2 else path
    path = conv(state, path, f"{h}.scratch.output_conv1", padding=1)
    return _up(path, (rows * 14, columns * 14))


def output(state: State, h: str, name: str, path: Tensor) -> Tensor:
    """One output (B, H, W) of the decoder, without its activation."""
    hidden = F.relu(conv(state, path, f"{h}.scratch.{name}.0", padding=1))
    return conv(state, hidden, f"{h}.scratch.{name}.2")[:, 0]


# ------------------------------------------------------------------------ Video-Depth-Anything


@functools.cache
def sinusoids(frames: int, width: int) -> Tensor:
    """Codes of the places in a clip, (T, C), one number after the other."""
    return torch.tensor(
        [
            [
                (math.cos if c % 2 else math.sin)(p * 10000.0 ** (-(c // 2 * 2) / width))
                for c in range(width)
            ]
            for p in range(frames)
        ]
    )


def temporal_module(
    state: State, p: str, x: Tensor, frames: int, past: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """A temporal module on maps.

    Args:
        state: The weights.
        p: Prefix of the module's names.
        x: (B * T, C, h, w).
        frames: T.
        past: Of each attention the states of earlier frames, (h * w, S, C); T and B are 1 then.

    Returns:
        The maps, and of each attention the states of these frames, (B * h * w, T, C).
    """
    p, width = f"{p}.temporal_transformer", x.shape[1]
    t = f"{p}.transformer_blocks.0"
    z = torch.group_norm(x, 32, state[f"{p}.norm.weight"], state[f"{p}.norm.bias"], 1e-6)
    z = linear(state, z.permute(0, 2, 3, 1), f"{p}.proj_in")  # (B T, h, w, C)
    height, columns = z.shape[1:3]
    z = z.reshape(-1, frames, height * columns, width).transpose(1, 2).flatten(0, 1)
    states = []
    for j in range(2):
        n = norm(state, z, f"{t}.norms.{j}", 1e-5)
        states.append(n)
        whole = n if past is None else torch.cat([past[j], n], 1)
        whole = whole + sinusoids(whole.shape[1], width).to(whole)
        a = f"{t}.attention_blocks.{j}"
        q = linear(state, whole[:, -frames:], f"{a}.to_q")
        k, v = linear(state, whole, f"{a}.to_k"), linear(state, whole, f"{a}.to_v")
        heads = []
        for part in range(8):
            own = slice(part * width // 8, (part + 1) * width // 8)
            logits = q[..., own] @ k[..., own].transpose(1, 2) / (width // 8) ** 0.5
            heads.append(logits.softmax(-1) @ v[..., own])
        z = z + linear(state, torch.cat(heads, -1), f"{a}.to_out.0")
    n = norm(state, z, f"{t}.ff_norm", 1e-5)
    value, gate = linear(state, n, f"{t}.ff.net.0.proj").split(4 * width, -1)
    gelu = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    z = z + linear(state, value * gelu, f"{t}.ff.net.2")
    z = linear(state, z, f"{p}.proj_out")
    z = z.unflatten(0, (-1, height * columns)).transpose(1, 2).flatten(0, 1)
    return x + z.transpose(1, 2).reshape(x.shape), states


def video_network(state: State, config: ModelConfig, x: Tensor) -> Tensor:
    """Clips (B, T, 3, H, W) to (B, T, H, W)."""
    taps = encoder(state, "pretrained", config, x.flatten(0, 1), 1e-6)

    def mix(number: int, z: Tensor) -> Tensor:
        return temporal_module(state, f"head.motion_modules.{number}", z, x.shape[1])[0]

    path = decoder(state, "head", taps, mix)
    return F.relu(output(state, "head", "output_conv2", path)).unflatten(0, x.shape[:2])


def video_stream(state: State, config: ModelConfig, frames: Sequence[Tensor]) -> list[Tensor]:
    """Frames (1, 3, H, W) to maps (H, W), each from the states of the published window.

    Frame t sees frame 0, one other, and frames t - 29 to t - 1. While the list of states is short,
    it begins with copies of frame 0.
    """
    out: list[Tensor] = []
    kept: list[list[list[Tensor]]] = []  # by frame, by module, by attention
    for t, x in enumerate(frames):
        own: list[list[Tensor]] = []
        seen = kept[:2] + kept[-29:]

        def mix(number: int, z: Tensor, own: list = own, seen: list = seen) -> Tensor:
            past = [torch.cat([f[number][j] for f in seen], 1) for j in (0, 1)] if seen else None
            z, states = temporal_module(state, f"head.motion_modules.{number}", z, 1, past)
            own.append(states)
            return z

        path = decoder(state, "head", encoder(state, "pretrained", config, x, 1e-6), mix)
        out.append(F.relu(output(state, "head", "output_conv2", path))[0])
        kept += [own] * (32 if t == 0 else 1)
        if t >= 11:
            del kept[1]
    return out
