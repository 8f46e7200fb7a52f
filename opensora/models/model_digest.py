"""Identifies the numbers of a model, wherever its files are."""

from __future__ import annotations

import hashlib
import zlib

import mindspore as ms
import numpy as np

from opensora.models.pretrained import PretrainedModel


def model_digest(model: PretrainedModel) -> str:
    """SHA-256 of a model's configuration, weights and dtypes, the same whether they are loaded or streamed."""
    digest = hashlib.sha256(repr(sorted(model.config.to_dict().items())).encode())
    float32 = model.float32_parameters()
    for name, parameter in model.parameters_and_names():
        checksum = 0
        for chunk in model.values(name):
            checksum = zlib.crc32(np.ascontiguousarray(chunk, np.float32).data, checksum)
        dtype = ms.float32 if name in float32 else model.dtype
        digest.update(f"{parameter.name} {parameter.shape} {dtype} {checksum}".encode())
    return digest.hexdigest()
