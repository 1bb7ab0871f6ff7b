"""The digest of a model's weights, which files of results record."""

from __future__ import annotations

import hashlib

from torch import nn


def digest_model(model: nn.Module) -> str:
    """Digest of the configuration and of the first few values of each weight.

    Training changes all weights, so a few values of each are enough.
    """
    config = model.config
    identity = getattr(config, "identity", "") or repr(config)
    digest = hashlib.sha256(identity.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
