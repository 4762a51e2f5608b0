"""Makes uda.safetensors: strong augmentation and feature distance, from PyTorch and kornia.

    python tests/golden/uda.py        # torch, numpy, safetensors, kornia==0.5.8

Inputs are the deterministic fill of tests/support/fill.rs. The normalised values reach outside 0...1 on purpose.
"""

import math
import os

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from fill import image, uniform
from safetensors.torch import save_file

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1) / 255
STD = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1) / 255


def jitter(xs, operations):
    apply = {
        "b": lambda x, f: kornia.enhance.adjust_brightness(x, f - 1),
        "c": kornia.enhance.adjust_contrast,
        "s": kornia.enhance.adjust_saturation,
        "h": lambda x, f: kornia.enhance.adjust_hue(x, 2 * math.pi * f),
    }
    xs = xs * STD + MEAN
    for operation, factor in operations:
        xs = apply[operation](xs, factor)
    return (xs - MEAN) / STD


def blur(xs, sigma):
    side = [int(np.floor(np.ceil(0.1 * n) - 0.5 + np.ceil(0.1 * n) % 2)) for n in xs.shape[2:]]
    return kornia.filters.gaussian_blur2d(xs, tuple(side), (sigma, sigma))


def feature_distance(features, reference, labels, things, min_ratio):
    scale = labels.shape[-1] // features.shape[-1]
    slots = torch.where(labels == 255, 19, labels)
    shares = F.avg_pool2d(F.one_hot(slots, 20).permute(0, 3, 1, 2).float(), scale)
    share, small = shares.max(1)
    small[(small == 19) | (share < min_ratio)] = 255
    mask = torch.isin(small, torch.tensor(things))
    return torch.norm(features - reference, dim=1)[mask].mean()


out = {}
small = image("jitter", (2, 3, 24, 32))
out["jitter_bcsh"] = jitter(small[:1], [("b", 1.15), ("c", 0.9), ("s", 1.1), ("h", 0.17)])
out["jitter_hscb"] = jitter(small[1:], [("h", -0.13), ("s", 0.85), ("c", 1.2), ("b", 0.83)])
out["blur"] = blur(image("blur", (1, 3, 45, 130)), 1.1)  # sides 5 and 13
out["both"] = blur(jitter(small[:1], [("c", 1.1), ("h", 0.05), ("b", 0.95), ("s", 1.19)]), 0.7)

features = image("features", (2, 6, 3, 4)).requires_grad_()
labels = torch.tensor((uniform("cells", (2, 3, 4)) * 20).astype(np.int64))
labels = torch.where(labels == 19, 255, labels).repeat_interleave(8, 1).repeat_interleave(8, 2)
noise = torch.tensor(uniform("noise", labels.shape))
labels = torch.where(noise < 0.22, 0, labels)  # some cells fall below the ratio
loss = feature_distance(features, image("reference", features.shape), labels, [6, 7, 11, 12, 13, 14, 15, 16, 17, 18], 0.75)
loss.backward()
out["feature_distance"] = loss.detach().view(1)
out["feature_distance_gradient"] = features.grad
out["feature_distance_labels"] = labels.to(torch.uint8)

here = os.path.dirname(os.path.abspath(__file__))
save_file({name: tensor.contiguous() for name, tensor in out.items()}, os.path.join(here, "uda.safetensors"))
print({name: tuple(tensor.shape) for name, tensor in out.items()}, "feature distance", loss.item())
