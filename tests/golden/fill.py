"""Deterministic values and summaries, the twins of tests/support/fill.rs and tests/support/summary.rs."""

import numpy as np
import torch


def uniform(name, shape):
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    x = (h + i * 0x9E3779B9) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    x ^= x >> 16
    return (x / 2.0**32).reshape(shape)


def fill(name, shape):
    u = uniform(name, shape)
    v, last = 2 * u - 1, name.split(".")[-1]
    if last == "running_var":
        v = 1 + 0.5 * u
    elif len(shape) >= 2:
        v = v * np.sqrt(3 / np.prod(shape[1:]))
    elif last == "weight":
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return torch.tensor(v.astype(np.float32))


def image(name, shape):
    return torch.tensor((2 * (2 * uniform(name, shape) - 1)).astype(np.float32))


def summary(name, tensor):
    flat = tensor.detach().double().flatten()
    picks = [i * (len(flat) - 1) // 15 for i in range(16)]
    product = (flat * image(name, tuple(tensor.shape)).double().flatten()).sum()
    return torch.stack([flat.norm(), flat.abs().max(), product, *flat[picks]]).float()


def put_fill(module, prefix=""):
    """Fills all parameters and statistics of `module` under their own names."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith("attn_mask"):
                tensor.copy_(fill(prefix + name, tuple(tensor.shape)))
