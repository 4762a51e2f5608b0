"""Reference values of the operations in src/nn, from PyTorch in double precision: outputs and gradients of all arguments.

Run: python tests/golden/nn.py  (needs torch, safetensors; writes tests/golden/nn.safetensors)
Each case NAME has NAME.in0, NAME.in1, ... (arguments), NAME.out, NAME.up (gradient of the output), NAME.d0, NAME.d1, ...
"""
import torch
import torch.nn.functional as F
from pathlib import Path
from safetensors.torch import save_file

torch.manual_seed(0)
values = {}


def case(name, function, *shapes, inputs=None):
    """Random inputs of `shapes` (or the given ones) through `function`, with a random gradient coming back."""
    xs = inputs or [torch.randn(shape) for shape in shapes]
    xs = [x.double().requires_grad_() for x in xs]
    out = function(*xs)
    up = torch.randn(out.shape).double()
    out.backward(up)
    for i, x in enumerate(xs):
        values[f"{name}.in{i}"], values[f"{name}.d{i}"] = x.detach(), x.grad
    values[f"{name}.out"], values[f"{name}.up"] = out.detach(), up


def conv(name, shape, weight, bias=True, **spec):
    shapes = [shape, weight] + ([(weight[0],)] if bias else [])
    case(name, lambda *a: F.conv2d(*a, **spec), *shapes)


conv("conv.plain", (2, 3, 7, 9), (4, 3, 3, 3))
conv("conv.padded", (2, 3, 7, 8), (4, 3, 3, 3), padding=1)
conv("conv.nobias", (1, 3, 5, 6), (4, 3, 3, 3), bias=False, padding=1)
conv("conv.stride2", (2, 3, 6, 7), (4, 3, 3, 3), padding=1, stride=2)
conv("conv.stride4", (1, 2, 21, 18), (3, 2, 7, 7), padding=3, stride=4)
conv("conv.patch", (1, 3, 13, 12), (5, 3, 4, 4), stride=4)
conv("conv.dilated2", (1, 3, 9, 10), (4, 3, 3, 3), padding=2, dilation=2)
conv("conv.dilated6", (1, 3, 7, 10), (4, 3, 3, 3), padding=6, dilation=6)
conv("conv.dilated2stride2", (1, 3, 9, 10), (4, 3, 3, 3), padding=2, dilation=2, stride=2)
conv("conv.groups", (2, 6, 7, 5), (4, 3, 3, 3), padding=1, groups=2)
conv("conv.groups_stride", (2, 6, 7, 6), (9, 2, 3, 3), padding=1, groups=3, stride=2)
conv("conv.point", (2, 5, 6, 7), (4, 5, 1, 1))
conv("conv.point_groups", (2, 6, 3, 5), (4, 3, 1, 1), groups=2)
conv("conv.point_stride", (2, 5, 6, 7), (4, 5, 1, 1), stride=2)
conv("conv.oblong", (1, 3, 6, 7), (2, 3, 1, 3), padding=1)
conv("conv.overpadded", (1, 2, 3, 2), (2, 2, 2, 3), padding=4, stride=3)
conv("dw.3", (2, 3, 7, 9), (3, 1, 3, 3), padding=1, groups=3)
conv("dw.7", (1, 2, 8, 11), (2, 1, 7, 7), padding=3, groups=2)
conv("dw.5nobias", (1, 3, 8, 7), (3, 1, 5, 5), bias=False, padding=2, groups=3)
conv("dw.wide", (1, 2, 3, 70), (2, 1, 3, 3), padding=1, groups=2)
conv("dw.stride2", (2, 3, 6, 7), (3, 1, 3, 3), padding=1, stride=2, groups=3)
conv("dw.stride2k5", (1, 3, 9, 8), (3, 1, 5, 5), padding=2, stride=2, groups=3)
conv("dw.valid_stride2", (1, 3, 9, 12), (3, 1, 3, 3), stride=2, groups=3)
conv("dw.stride3", (1, 3, 11, 10), (3, 1, 3, 3), padding=1, stride=3, groups=3)
conv("dw.dilated2", (1, 3, 7, 10), (3, 1, 3, 3), padding=2, dilation=2, groups=3)
conv("dw.dilated6", (1, 3, 9, 10), (3, 1, 3, 3), padding=6, dilation=6, groups=3)
conv("dw.dilated18", (1, 2, 7, 12), (2, 1, 3, 3), padding=18, dilation=18, groups=2)
conv("dw.dilated12wide", (1, 2, 5, 34), (2, 1, 3, 3), padding=12, dilation=12, groups=2)
conv("dw.dilated3stride2", (1, 3, 13, 10), (3, 1, 3, 3), padding=3, dilation=3, stride=2, groups=3)
conv("dw.multiplier", (2, 3, 6, 7), (6, 1, 3, 3), padding=1, stride=2, groups=3)

case("linear.3d", F.linear, (2, 5, 7), (6, 7), (6,))
case("linear.nobias", F.linear, (5, 7), (6, 7))


def attention(causal):
    def function(q, k, v):
        scores = q @ k.transpose(-1, -2) * 0.3
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
        return scores.softmax(-1) @ v
    return function


case("attention.cross", attention(False), (1, 3, 7, 5), (1, 3, 11, 5), (1, 3, 11, 5))
case("attention.causal", attention(True), (1, 2, 35, 4), (1, 2, 35, 4), (1, 2, 35, 4))
case("attention.one_head", attention(False), (1, 1, 270, 2), (1, 1, 260, 2), (1, 1, 260, 2))

case("norm.layer", lambda x, w, b: F.layer_norm(x, (37,), w, b, 1e-6), (2, 3, 37), (37,), (37,))
far = [torch.randn(4, 37) + 300, torch.randn(37), torch.randn(37)]
case("norm.layer_far", lambda x, w, b: F.layer_norm(x, (37,), w, b, 1e-5), inputs=far)
case("norm.group", lambda x, w, b: F.group_norm(x, 3, w, b, 1e-5), (2, 6, 5, 7), (6,), (6,))
case("norm.group_silu", lambda x, w, b: F.silu(F.group_norm(x, 3, w, b, 1e-6)), (2, 6, 5, 7), (6,), (6,))
far = [torch.randn(3, 4, 5, 7) * 0.5 + 50, torch.randn(4), torch.randn(4)]
mean, var = torch.zeros(4).double(), torch.ones(4).double()
case("norm.batch", lambda x, w, b: F.batch_norm(x, mean, var, w, b, True, 0.1, 1e-5), inputs=far)
values["norm.batch.mean"], values["norm.batch.var"] = mean.clone(), var.clone()
case("norm.batch_eval", lambda x, w, b: F.batch_norm(x, mean, var, w, b, False, 0.1, 1e-5), (3, 4, 5, 7), (4,), (4,))

line = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([0.0, 6.0, -0.0, 1e-4, -1e-4, 88.0, -88.0])])
case("act.gelu", F.gelu, inputs=[line])
case("act.quick_gelu", lambda x: x * torch.sigmoid(1.702 * x), inputs=[line])
case("act.silu", F.silu, inputs=[line])
case("act.relu", F.relu, inputs=[line])
case("act.relu6", F.relu6, inputs=[line])


def geglu(x):
    h, g = x.chunk(2, -1)
    return h * F.gelu(g)


case("act.geglu", geglu, (3, 5, 14))
case("act.softmax", lambda x: F.softmax(x * 1, -1), (2, 3, 43))

for name, shape, size in [("up", (2, 1, 5, 7), (13, 16)), ("down", (1, 2, 13, 11), (5, 4)), ("mixed", (1, 2, 6, 5), (3, 9)),
                          ("one", (1, 2, 4, 5), (1, 1)), ("from_one", (1, 2, 1, 1), (3, 4)), ("same_rows", (1, 2, 4, 5), (4, 9))]:
    for align in (False, True):
        case(f"bilinear.{name}.{int(align)}",
             lambda x: F.interpolate(x, size=size, mode="bilinear", align_corners=align), shape)
    case(f"nearest.{name}", lambda x: F.interpolate(x, size=size, mode="nearest"), shape)

case("pool.3s2p1", lambda x: F.max_pool2d(x, 3, 2, 1), (1, 3, 7, 10))
case("pool.2s2", lambda x: F.max_pool2d(x, 2, 2), (1, 3, 7, 10))
case("pool.3s1p1", lambda x: F.max_pool2d(x, 3, 1, 1), (1, 2, 5, 4))
case("pool.ties", lambda x: F.max_pool2d(x, 3, 2, 1), inputs=[torch.randint(-2, 1, (2, 3, 9, 8)).float()])

labels = torch.randint(0, 6, (2, 5, 7))
labels[labels == 5] = 255
pixel_weights = torch.rand(2, 5, 7)
values["loss.labels"], values["loss.weights"] = labels.float(), pixel_weights
pixel_loss = lambda x: F.cross_entropy(x, labels, ignore_index=255, reduction="none")
case("loss.ce", lambda x: pixel_loss(x).mean(), inputs=[4 * torch.randn(2, 5, 5, 7)])
case("loss.ce_weighted", lambda x: (pixel_loss(x) * pixel_weights).mean(), inputs=[4 * torch.randn(2, 5, 5, 7)])
case("loss.mse", F.mse_loss, (3, 4, 5), (3, 4, 5))

path = Path(__file__).with_suffix(".safetensors")
save_file({name: value.float().contiguous() for name, value in values.items()}, path)
path.chmod(0o644)
