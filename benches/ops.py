"""PyTorch's times for the rows of benches/ops.rs: same names, shapes, columns. Two threads. python benches/ops.py [FILTER]"""
import sys

import torch
import torch.nn.functional as F
from timing import timed

torch.set_num_threads(2)
wanted = sys.argv[1] if len(sys.argv) > 1 else ""


def row(name, shapes, op):
    if wanted not in name:
        return
    arguments = [torch.randn(*shape) * 0.5 for shape in shapes]
    with torch.no_grad():
        forward = timed(lambda: op(*arguments), 0.4, 3)
        gradient = torch.ones_like(op(*arguments))
    arguments = [a.requires_grad_() for a in arguments]

    def both():
        for a in arguments:
            a.grad = None
        op(*arguments).backward(gradient)

    print(name, *(f"{t:.3f}" for t in (*forward, *timed(both, 0.4, 3))), sep="\t", flush=True)


def conv(name, xs, weight, stride=1, padding=0, dilation=1, groups=1):
    row(name, [xs, weight, weight[:1]], lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation, groups))


def attention(name, heads, queries, keys, dim):
    q, kv = (1, queries, heads * dim), (1, keys, heads * dim)
    row(name, [q, kv, kv], lambda q, k, v: attend(q, k, v, heads, 0.158))


def attend(q, k, v, heads, scale, causal=False):
    """As in diffusers: heads are split off before the product and joined after it."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal).transpose(1, 2).flatten(2)


xs, weight = (1, 320, 64, 64), (320, 320, 3, 3)
conv("conv3x3 320ch 64x64", xs, weight, 1, 1)
conv("conv3x3 640ch 32x32", (1, 640, 32, 32), (640, 640, 3, 3), 1, 1)
conv("conv3x3 1280ch 16x16", (1, 1280, 16, 16), (1280, 1280, 3, 3), 1, 1)
conv("conv3x3 1280ch 8x8", (1, 1280, 8, 8), (1280, 1280, 3, 3), 1, 1)
conv("conv3x3 64ch 40x40", (1, 64, 40, 40), (64, 64, 3, 3), 1, 1)
conv("conv3x3 128ch 20x20", (1, 128, 20, 20), (128, 128, 3, 3), 1, 1)
for name, channels, height, width in [
    ("conv3x3 64ch 16x32 b32", 64, 16, 32),
    ("conv3x3 128ch 8x16 b32", 128, 8, 16),
    ("conv3x3 128ch 4x8 b32", 128, 4, 8),
]:
    conv(name, (32, channels, height, width), (channels, channels, 3, 3), 1, 1)
conv("conv3x3 320ch 64x64 s2", xs, weight, 2, 1)
conv("conv3x3 128ch 256x256", (1, 128, 256, 256), (128, 128, 3, 3), 1, 1)
conv("conv1x1 320ch 64x64", xs, (320, 320, 1, 1))
conv("conv3x3 256ch 33x33 d6", (1, 256, 33, 33), (256, 256, 3, 3), 1, 6, 6)
conv("conv3x3 256ch 64x64 g8", (1, 256, 64, 64), (256, 32, 3, 3), 1, 1, 1, 8)
conv("conv7x7 s4 3->64 512x512", (1, 3, 512, 512), (64, 3, 7, 7), 4, 3)
frozen = torch.randn(weight)
row("conv3x3 320ch 64x64 frozen", [xs], lambda x: F.conv2d(x, frozen, None, 1, 1))
for name, channels, size, kernel, dilation, stride in [
    ("dw3x3 256ch 128x128", 256, 128, 3, 1, 1),
    ("dw3x3 256ch 128x128 d18", 256, 128, 3, 18, 1),
    ("dw3x3 1280ch 32x32", 1280, 32, 3, 1, 1),
    ("dw3x3 2048ch 16x16", 2048, 16, 3, 1, 1),
    ("dw3x3 192ch 128x128 s2", 192, 128, 3, 1, 2),
    ("dw7x7 192ch 128x128", 192, 128, 7, 1, 1),
    ("dw7x7 1536ch 16x16", 1536, 16, 7, 1, 1),
]:
    conv(name, (1, channels, size, size), (channels, 1, kernel, kernel), stride, kernel // 2 * dilation, dilation, channels)
row("linear 4096x320->2560", [(4096, 320), (2560, 320), (2560,)], F.linear)
row("linear 77x768->3072", [(77, 768), (3072, 768), (3072,)], F.linear)
row("linear 77x768->768", [(77, 768), (768, 768), (768,)], F.linear)
attention("attention 4096 tok 8x40", 8, 4096, 4096, 40)
attention("attention 1024 tok 8x80", 8, 1024, 1024, 80)
attention("attention 4096x77 8x40", 8, 4096, 77, 40)
attention("attention 4096 tok 1x512", 1, 4096, 4096, 512)
row("attention 512 tok 4x16 b32", [(32, 512, 64)] * 3, lambda q, k, v: attend(q, k, v, 4, 0.25))
row("attention 77 tok 12x64 causal", [(1, 77, 768)] * 3, lambda q, k, v: attend(q, k, v, 12, 0.125, True))
row("linear 16384x64->512", [(16384, 64), (512, 64), (512,)], F.linear)
row("linear 16384x64->64", [(16384, 64), (64, 64), (64,)], F.linear)
w, b = torch.ones(320, requires_grad=True), torch.zeros(320, requires_grad=True)
row("group norm 32g 320ch 64x64", [xs], lambda x: F.group_norm(x, 32, w, b))
row("group norm silu 320ch 64x64", [xs], lambda x: F.silu(F.group_norm(x, 32, w, b)))
for rows, width in [(4096, 320), (16384, 64)]:
    row(f"layer norm {rows}x{width}", [(1, rows, width)], lambda x: F.layer_norm(x, (width,), w[:width], b[:width]))
batch = torch.nn.BatchNorm2d(64)
row("batch norm 64ch 2x128x128", [(2, 64, 128, 128)], batch)
row("softmax 8x4096x1024", [(8, 4096, 1024)], lambda x: F.softmax(x, -1))
row("gelu 4096x1280", [(4096, 1280)], F.gelu)


def geglu(x):
    h, g = x.chunk(2, -1)
    return h * F.gelu(g)


row("geglu 4096x2560", [(4096, 2560)], geglu)
row("silu 320ch 64x64", [xs], F.silu)
row("relu 64ch 256x256", [(1, 64, 256, 256)], F.relu)
row("heads split 4096x320", [(1, 4096, 320)], lambda x: x.reshape(1, 4096, 8, 40).transpose(1, 2).contiguous())
row("nearest x2 320ch 32x32", [(1, 320, 32, 32)], lambda x: F.interpolate(x, scale_factor=2, mode="nearest"))
row("bilinear 19ch 128->512", [(1, 19, 128, 128)], lambda x: F.interpolate(x, size=(512, 512), mode="bilinear"))
row("bilinear 256ch 16->128", [(1, 256, 16, 16)], lambda x: F.interpolate(x, size=(128, 128), mode="bilinear"))
row("max pool 3 s2 64ch 256x256", [(1, 64, 256, 256)], lambda x: F.max_pool2d(x, 3, 2, 1))
labels = (torch.arange(512 * 512) % 19).reshape(1, 512, 512)
row("cross entropy 19x512x512", [(1, 19, 512, 512)], lambda x: F.cross_entropy(x, labels))
row("mse 4x64x64", [(1, 4, 64, 64)] * 2, F.mse_loss)


def update(name, call):
    if wanted in name:
        print(name, *(f"{t:.3f}" for t in timed(call, 0.4, 3)), "nan", "nan", sep="\t", flush=True)


if wanted in "adamw with clipping 16M" or wanted in "running average 16M":
    weights = [torch.nn.Parameter(torch.randn(1024, 1024) * 0.02) for _ in range(16)]
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, 1e-6, weight_decay=1e-2, fused=True)
    sum(weight.square().sum() for weight in weights).backward()

    def step():
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    update("adamw with clipping 16M", step)
    with torch.no_grad():
        update("running average 16M", lambda: torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 0.001))
