"""Makes seg.safetensors: features, logits, loss, gradients and batch-norm statistics of segmenters, from PyTorch.

    python tests/golden/seg.py        # torch, numpy, safetensors, transformers 5, efficientnet-lite-pytorch

The MiT encoder is transformers' Segformer with the original code's norm eps, EfficientNet-Lite0 is the PyPI package's with
padding computed from the actual size; both decoders are written here from their description. Weights and inputs are the
deterministic fill of tests/support/fill.rs, so only results are stored, each as a summary: norm, largest absolute value,
scalar product with image(name), and 16 evenly spaced values.
"""

import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from transformers import SegformerConfig, SegformerModel

torch.manual_seed(0)
torch.set_num_threads(2)
CLASSES = 19


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


def labels(name, shape):
    drawn = torch.tensor((uniform(name, shape) * (CLASSES + 1)).astype(np.int64))
    return torch.where(drawn == CLASSES, 255, drawn)


def summary(name, tensor):
    flat = tensor.detach().double().flatten()
    picks = [i * (len(flat) - 1) // 15 for i in range(16)]
    product = (flat * image(name, tuple(tensor.shape)).double().flatten()).sum()
    return torch.stack([flat.norm(), flat.abs().max(), product, *flat[picks]]).float()


class MiT(nn.Module):
    """transformers' encoder; `named` lists (our name, its tensors in order)."""

    channels = (32, 64, 160, 256)

    def __init__(self):
        super().__init__()
        config = SegformerConfig(drop_path_rate=0.0, attn_implementation="eager")  # defaults are B0
        self.model = SegformerModel(config)
        for stage in self.model.stages:
            stage.layer_norm.eps = 1e-6
            for block in stage.blocks:
                block.layernorm_before.eps = block.layernorm_after.eps = 1e-6

    def forward(self, x):
        maps = []
        for stage in self.model.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def named(self):
        for s, stage in enumerate(self.model.stages, 1):
            yield f"patch_embed{s}.proj", [stage.patch_embeddings.proj]
            yield f"patch_embed{s}.norm", [stage.patch_embeddings.layer_norm]
            yield f"norm{s}", [stage.layer_norm]
            for i, b in enumerate(stage.blocks):
                a, at = b.attention, f"block{s}.{i}"
                yield f"{at}.norm1", [b.layernorm_before]
                yield f"{at}.norm2", [b.layernorm_after]
                yield f"{at}.attn.q", [a.q_proj]
                yield f"{at}.attn.kv", [a.k_proj, a.v_proj]
                yield f"{at}.attn.proj", [a.o_proj]
                if a.sequence_reduction_ratio > 1:
                    yield f"{at}.attn.sr", [a.sequence_reduction.sequence_reduction]
                    yield f"{at}.attn.norm", [a.sequence_reduction.layer_norm]
                yield f"{at}.mlp.fc1", [b.mlp.fc1]
                yield f"{at}.mlp.dwconv.dwconv", [b.mlp.dwconv.dwconv]
                yield f"{at}.mlp.fc2", [b.mlp.fc2]

    def tensors(self):
        for name, modules in self.named():
            for kind in ("weight", "bias"):
                yield f"backbone.{name}.{kind}", [getattr(m, kind) for m in modules]


class Lite0(nn.Module):
    channels = (24, 40, 112, 320)

    def __init__(self):
        super().__init__()
        self.model = EfficientNet.from_name("efficientnet-lite0", image_size=None, drop_connect_rate=0.0)
        for head in ("_conv_head", "_bn1", "_fc"):
            delattr(self.model, head)

    def forward(self, x):
        m, maps = self.model, []
        x = m._swish(m._bn0(m._conv_stem(x)))
        for i, block in enumerate(m._blocks):
            x = block(x)
            if i in (2, 4, 10, 15):
                maps.append(x)
        return maps

    def tensors(self):
        for name, tensor in named_tensors(self.model):
            yield f"backbone.{name}", [tensor]


def named_tensors(module):
    yield from module.named_parameters()
    yield from ((name, b) for name, b in module.named_buffers() if not name.endswith("num_batches_tracked"))


def conv_bn_relu(inputs, outputs, kernel, dilation=1, groups=1):
    padding = dilation * (kernel // 2)
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False))
    block.add_module("bn", nn.BatchNorm2d(outputs))
    block.add_module("relu", nn.ReLU())
    return block


class Projection(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Separable(nn.Module):
    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.depthwise_conv = conv_bn_relu(inputs, inputs, 3, dilation, inputs)
        self.pointwise_conv = conv_bn_relu(inputs, outputs, 1)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class Head(nn.Module):
    def embedded(self, layers, maps):
        size = maps[0].shape[-2:]
        return torch.cat([F.interpolate(l(m), size, mode="bilinear") for l, m in zip(layers, maps)], 1)

    def tensors(self):
        for name, tensor in named_tensors(self):
            yield f"decode_head.{name}", [tensor]


class DAFormerHead(Head):
    def __init__(self, channels, width):
        super().__init__()
        self.embed_layers = nn.ModuleList(Projection(c, width) for c in channels)
        self.fuse_layer = nn.Module()
        self.fuse_layer.aspp_modules = nn.ModuleList(
            [conv_bn_relu(4 * width, width, 1)] + [Separable(4 * width, width, d) for d in (6, 12, 18)]
        )
        self.fuse_layer.bottleneck = conv_bn_relu(4 * width, width, 3)
        self.conv_seg = nn.Conv2d(width, CLASSES, 1)

    def forward(self, maps):
        x = self.embedded(self.embed_layers, maps)
        branches = [branch(x) for branch in self.fuse_layer.aspp_modules]
        return self.conv_seg(self.fuse_layer.bottleneck(torch.cat(branches, 1)))


class SegFormerHead(Head):
    def __init__(self, channels, width):
        super().__init__()
        self.linear_c = nn.ModuleList(Projection(c, width) for c in channels)
        self.linear_fuse = conv_bn_relu(4 * width, width, 1)
        self.linear_pred = nn.Conv2d(width, CLASSES, 1)

    def forward(self, maps):
        return self.linear_pred(self.linear_fuse(self.embedded(self.linear_c, maps)))


def put_fill(part):
    for name, tensors in part.tensors():
        whole = fill(name, (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:]))
        with torch.no_grad():
            for tensor, values in zip(tensors, whole.split([t.shape[0] for t in tensors])):
                tensor.copy_(values)


def shift(part):
    """Moves what enters ReLU and ReLU6 away from their kinks (biases of batch norms before them + 3): a rounding error
    at a kink switches a unit's gradient on or off, and PyTorch's own f32 and f64 gradients then differ by 1 %."""
    with torch.no_grad():
        for name, tensors in part.tensors():
            if name.endswith((".bn.bias", "_bn0.bias", "_bn1.bias")):
                tensors[0].add_(3)


def case(out, label, encoder, head, shape, only=""):
    """Evaluation features and logits, then one training step's loss, gradients and statistics."""
    for part in (encoder, head):
        put_fill(part)
    record = lambda kind, name, tensor: out.__setitem__(f"{label}/{kind}/{name}", summary(name, tensor))
    inputs = image("input", shape)
    with torch.no_grad():
        encoder.eval(), head.eval()
        maps = encoder(inputs)
        for i, level in enumerate(maps):
            record("eval", f"level{i}", level)
        record("eval", "logits", head(maps))
    shift(encoder), shift(head)
    encoder.train(), head.train()
    logits = head(encoder(inputs))
    record("train", "logits", logits)
    target = labels("labels", (shape[0], *shape[2:]))
    logits = F.interpolate(logits, shape[2:], mode="bilinear")
    loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none").mean()
    out[f"{label}/train/loss"] = loss.detach().reshape(1)
    loss.backward()
    for name, tensors in [*encoder.tensors(), *head.tensors()]:
        if not name.startswith(only):
            continue
        if tensors[0].requires_grad:
            record("grad", name, torch.cat([t.grad for t in tensors]))
        else:
            record("state", name, tensors[0])


if __name__ == "__main__":
    results = {}
    case(results, "mit", MiT(), DAFormerHead(MiT.channels, 32), (2, 3, 64, 96))
    case(results, "mit-odd", MiT(), DAFormerHead(MiT.channels, 32), (2, 3, 65, 98), only="backbone.patch_embed")
    case(results, "lite0", Lite0(), DAFormerHead(Lite0.channels, 32), (2, 3, 64, 96))
    case(results, "lite0-odd", Lite0(), DAFormerHead(Lite0.channels, 32), (2, 3, 75, 98), only="backbone._blocks.1.")
    case(results, "segformer", MiT(), SegFormerHead(MiT.channels, 64), (2, 3, 64, 96), only="decode_head.")
    save_file(results, os.path.join(os.path.dirname(__file__), "seg.safetensors"))
    print(len(results), "tensors")
