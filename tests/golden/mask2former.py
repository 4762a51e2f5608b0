"""Makes mask2former.safetensors: deformable attention, both decoders, losses and matching, with gradients, from the published
code; mask2former_names.json: names and shapes of the published heads; and clouds.pth: a small training checkpoint as detectron2
writes it, in half precision, with a whole CLIP.

    python tests/golden/mask2former.py MASK2FORMER DETECTRON2 CLOUDS
        # torch, numpy, scipy, safetensors, timm, open_clip_torch

The arguments are checkouts of facebookresearch/Mask2Former, facebookresearch/detectron2 and yasserben/CLOUDS. Only their
modules of the head are imported; what these want of detectron2 and fvcore to be configured and registered is replaced here.
Weights and inputs are the deterministic fill of tests/support/fill.rs; `torch.rand` gives the numbers of `uniform` under the
names rand0, rand1, …
"""

import importlib
import json
import os
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from clip import CONVNEXT, TEXT, convnext_maps
from fill import image, put_fill, summary, uniform
from open_clip.model import CLIP
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

HERE = os.path.dirname(os.path.abspath(__file__))
CHANNELS = dict(res2=12, res3=16, res4=24, res5=32)
STRIDES = dict(res2=4, res3=8, res4=16, res5=32)
DIRECTIONS = ["mask_features", "memory0", "memory1", "memory2"]


def module(name, path=None, **contents):
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    if path:
        made.__path__ = [path]
    sys.modules[name] = made
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


class Registry(dict):
    def __init__(self, name=""):
        self.name = name

    def register(self):
        return lambda made: made


class Conv2d(torch.nn.Conv2d):
    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = super().forward(x)
        x = self.norm(x) if self.norm else x
        return self.activation(x) if self.activation else x


class ShapeSpec:
    def __init__(self, channels, stride):
        self.channels, self.stride = channels, stride


def install(mask2former, detectron2, clouds):
    ignore = lambda *args, **kwargs: None
    module("fvcore"), module("fvcore.nn"), module("fvcore.nn.weight_init", c2_xavier_fill=ignore)
    module("MultiScaleDeformableAttention")  # without its functions: the published code falls back to PyTorch
    module("detectron2")
    module("detectron2.config", configurable=lambda made: made)
    norm = lambda kind, channels: torch.nn.GroupNorm(32, channels)
    module("detectron2.layers", Conv2d=Conv2d, ShapeSpec=ShapeSpec, get_norm=norm, cat=torch.cat, shapes_to_tensor=ignore)
    module("detectron2.modeling", SEM_SEG_HEADS_REGISTRY=Registry())
    module("detectron2.structures", BitMasks=object, Boxes=object)
    module("detectron2.utils"), module("detectron2.utils.comm", get_world_size=lambda: 1)
    module("detectron2.utils.registry", Registry=Registry)
    module("detectron2.projects")
    module("detectron2.projects.point_rend", os.path.join(detectron2, "projects/PointRend/point_rend"))
    for name, folder in [("mask2former", mask2former), ("clouds", clouds)]:
        root = os.path.join(folder, name)
        module(name, root), module(f"{name}.modeling", f"{root}/modeling")
        module(f"{name}.utils", f"{root}/utils")
        for part in ("pixel_decoder", "transformer_decoder"):
            module(f"{name}.modeling.{part}", f"{root}/modeling/{part}")
    # Renamed since the code was published.
    sys.modules["torch.cuda.amp"].autocast = lambda enabled=True: torch.autocast("cpu", enabled=False)
    load = importlib.import_module
    return types.SimpleNamespace(
        attention=load("mask2former.modeling.pixel_decoder.ops.functions.ms_deform_attn_func").ms_deform_attn_core_pytorch,
        pixel=load("mask2former.modeling.pixel_decoder.msdeformattn").MSDeformAttnPixelDecoder,
        decoder=load("mask2former.modeling.transformer_decoder.mask2former_transformer_decoder").MultiScaleMaskedTransformerDecoder,
        text_decoder=load("clouds.modeling.transformer_decoder.clouds_transformer_decoder").MultiScaleMaskedTransformerDecoder,
        criterion=load("mask2former.modeling.criterion").SetCriterion,
        matcher=load("mask2former.modeling.matcher").HungarianMatcher,
    )


def deformable(out, code):
    """Levels 3x5, 6x10 and 12x20, 2 images, 7 queries, 2 heads of 4 values, 3 points; many of them outside."""
    levels, references = [(3, 5), (6, 10), (12, 20)], torch.tensor(uniform("references", (7, 2)))
    value = image("value", (2, 315, 2, 4)).double().requires_grad_()
    offsets = (3 * image("offsets", (2, 7, 2, 3, 3, 2)).double()).requires_grad_()
    weights = image("weights", (2, 7, 2, 3, 3)).double().requires_grad_()
    sizes = torch.tensor([[w, h] for h, w in levels], dtype=torch.float64)
    locations = references.float().double()[None, :, None, None, None] + offsets / sizes[None, None, None, :, None]
    result = code.attention(value, levels, locations, weights)
    result.backward(image("up", tuple(result.shape)).double())
    for name, tensor in [("out", result), ("value", value.grad), ("offsets", offsets.grad), ("weights", weights.grad)]:
        out[f"deformable/{name}"] = tensor.detach().float().contiguous()


def pixel_decoder(code, channels, width, layers, hidden, heads):
    shapes = {name: ShapeSpec(count, STRIDES[name]) for name, count in channels.items()}
    return code.pixel(shapes, transformer_dropout=0.0, transformer_nheads=heads, transformer_dim_feedforward=hidden,
                      transformer_enc_layers=layers, conv_dim=width, mask_dim=width, norm="GN",
                      transformer_in_features=["res3", "res4", "res5"], common_stride=4)


def decoder(kind, width, queries, heads, hidden, layers, **others):
    return kind(width, True, num_classes=19, hidden_dim=width, num_queries=queries, nheads=heads, dim_feedforward=hidden,
                dec_layers=layers, pre_norm=False, mask_dim=width, enforce_input_project=False, **others)


class Head(torch.nn.Module):
    def __init__(self, pixel, predictor):
        super().__init__()
        self.pixel_decoder, self.predictor = pixel, predictor

    def forward(self, features, *classes):
        mask_features, _, memory = self.pixel_decoder.forward_features(features)
        return mask_features, memory, self.predictor(memory, mask_features, None, *classes)


def small_head(code, text):
    pixel = pixel_decoder(code, CHANNELS, 64, 2, 96, 4)
    sizes = dict(width=64, queries=10, heads=4, hidden=80, layers=4)
    predictor = decoder(code.text_decoder, clip_embedding_dim=24, **sizes) if text else decoder(code.decoder, **sizes)
    root = torch.nn.Module()
    root.sem_seg_head = Head(pixel, predictor)
    if text:
        root.void_embedding = torch.nn.Embedding(1, 24)
    put_fill(root)
    return root


def heads(out, code, text):
    label, root = "text" if text else "linear", small_head(code, text)
    features = {name: image(name, (2, count, 64 // STRIDES[name], 96 // STRIDES[name])) for name, count in CHANNELS.items()}
    classes = []
    if text:
        vectors = F.normalize(image("text", (5, 24)), dim=-1)
        classes = [torch.cat([vectors, F.normalize(root.void_embedding.weight, dim=-1)]), [2, 1, 2]]
    mask_features, memory, found = root.sem_seg_head(features, *classes)
    layers, total = [*found["aux_outputs"], {k: found[k] for k in ("pred_logits", "pred_masks")}], 0
    for name, tensor in zip(DIRECTIONS, [mask_features, *memory]):
        # Memory is compared as tokens: (B, N, C).
        tensor = tensor if name == "mask_features" else tensor.flatten(2).transpose(1, 2)
        out[f"{label}/{name}"] = summary(name, tensor)
    full, nearest = 0, 1e9
    for i, layer in enumerate(layers):
        for kind, tensor in layer.items():
            out[f"{label}/{kind}{i}"] = summary(f"{kind}{i}", tensor)
            total = total + (tensor * image(f"up.{kind}{i}", tuple(tensor.shape))).mean()
        if i + 1 < len(layers):
            resized = F.interpolate(layer["pred_masks"], memory[i % 3].shape[-2:], mode="bilinear")
            full += (resized < 0).flatten(2).all(-1).sum().item()
            nearest = min(nearest, resized.abs().min().item())
    print(label, "fully blocked rows:", full, "smallest resized mask logit:", nearest)
    total.backward()
    for name, parameter in root.named_parameters():
        out[f"{label}/grad/{name}"] = summary(name, parameter.grad)


def checkpoint(out, code):
    root = torch.nn.Module()
    root.backbone = torch.nn.Module()
    root.backbone.clip_model = CLIP(embed_dim=24, vision_cfg=CONVNEXT, text_cfg={**TEXT, "width": 16}).eval()
    channels = dict(zip(CHANNELS, (8, 16, 24, 32)))
    predictor = decoder(code.decoder, width=32, queries=4, heads=4, hidden=32, layers=3)
    root.sem_seg_head = Head(pixel_decoder(code, channels, 32, 1, 32, 4), predictor)
    root.void_embedding = torch.nn.Embedding(1, 24)
    root.criterion = torch.nn.Module()
    root.criterion.register_buffer("empty_weight", torch.tensor([1.0] * 19 + [0.1]))
    put_fill(root)
    root.half().float()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in root.state_dict().items()}
    state = {0: dict(step=1, exp_avg=torch.zeros(2))}
    trainer = dict(iteration=1, hooks={}, _trainer=dict(iteration=1, optimizer=dict(state=state, param_groups=[])))
    torch.save(dict(model=halves, trainer=trainer, iteration=1), os.path.join(HERE, "clouds.pth"))
    with torch.no_grad():
        maps = convnext_maps(root.backbone.clip_model.visual, image("input", (1, 3, 64, 96)))
        found = root.sem_seg_head(dict(zip(CHANNELS, maps)))[2]
    for name in ("pred_logits", "pred_masks"):
        out[f"checkpoint/{name}"] = summary(name, found[name])


def numbered_rand():
    count = iter(range(10**6))
    return lambda *shape, **kwargs: torch.tensor(uniform(f"rand{next(count)}", shape).astype(np.float32))


def losses(out, code):
    """Ten predictions, three images: five targets, none, twelve."""
    matcher = code.matcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64)
    criterion = code.criterion(19, matcher, {}, 0.1, ["labels", "masks"], 64, 3.0, 0.75)
    targets = []
    for b, labels in enumerate([[0, 2, 8, 13, 18], [], list(range(12))]):
        masks = uniform(f"target{b}", (len(labels), 24, 40)) < 0.3
        targets.append(dict(labels=torch.tensor(labels, dtype=torch.int64), masks=torch.tensor(masks)))
    layers = []
    for i in range(10):
        layers.append(dict(pred_logits=image(f"logits{i}", (3, 15, 20)).requires_grad_(),
                           pred_masks=(3 * image(f"masks{i}", (3, 15, 10, 14))).requires_grad_()))
    torch.rand, real = numbered_rand(), torch.rand
    found = criterion(dict(**layers[-1], aux_outputs=layers[:-1]), targets)
    torch.rand = real
    weights = dict(loss_ce=2.0, loss_mask=5.0, loss_dice=5.0)
    total = sum(weights["_".join(name.split("_")[:2])] * value for name, value in found.items())
    total.backward()
    out["criterion/total"] = total.detach().reshape(1)
    for name, value in found.items():
        out[f"criterion/{name}"] = value.detach().reshape(1)
    for i, layer in enumerate(layers):
        for name, tensor in layer.items():
            out[f"criterion/grad/{name}{i}"] = summary(f"{name}{i}", tensor.grad)


def assignments(out):
    for name, shape, steps in [("wide", (19, 100), 0), ("tall", (100, 19), 0), ("square", (12, 12), 0), ("ties", (9, 14), 3),
                               ("tall_ties", (14, 9), 3), ("one", (1, 1), 0)]:
        cost = uniform(f"cost.{name}", shape)
        cost = np.floor(cost * steps) if steps else cost
        rows, columns = linear_sum_assignment(cost)
        out[f"assign/{name}"] = torch.tensor(np.stack([rows, columns], 1).astype(np.int64))


def semantic(out):
    logits, masks = image("logits", (2, 10, 20)), 2 * image("masks", (2, 10, 7, 9))
    masks = F.interpolate(masks, (150, 37), mode="bilinear", align_corners=False).sigmoid()
    out["semantic"] = summary("semantic", torch.einsum("bqc,bqhw->bchw", F.softmax(logits, -1)[..., :-1], masks))


def published(code):
    channels = dict(res2=192, res3=384, res4=768, res5=1536)
    pixel = pixel_decoder(code, channels, 256, 6, 1024, 8)
    sizes = dict(width=256, queries=100, heads=8, hidden=2048, layers=9)
    names = {}
    for label, predictor in [("linear", decoder(code.decoder, **sizes)),
                             ("text", decoder(code.text_decoder, clip_embedding_dim=768, **sizes))]:
        root = torch.nn.Module()
        root.sem_seg_head = Head(pixel, predictor)
        root.void_embedding = torch.nn.Embedding(1, 768)
        names[label] = {name: list(t.shape) for name, t in root.state_dict().items()}
        names[label]["criterion.empty_weight"] = [20]
    return names


if __name__ == "__main__":
    code, results = install(*sys.argv[1:4]), {}
    deformable(results, code)
    heads(results, code, False)
    heads(results, code, True)
    checkpoint(results, code)
    losses(results, code)
    assignments(results)
    semantic(results)
    path = os.path.join(HERE, "mask2former.safetensors")
    save_file(results, path)
    os.chmod(path, 0o644)
    with open(os.path.join(HERE, "mask2former_names.json"), "w") as out:
        heads = [f'"{head}": {{\n' + ",\n".join(f"{json.dumps(n)}: {s}" for n, s in names.items()) + "}"
                 for head, names in published(code).items()]
        out.write("{" + ",\n".join(heads) + "}\n")
    print(len(results), "tensors")
