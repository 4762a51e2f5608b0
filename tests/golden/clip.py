"""Makes clip.safetensors: maps of CLIP image towers, text vectors, and all gradients, from open_clip; and clip_names.json:
names and shapes of its published sizes.

    python tests/golden/clip.py        # torch, numpy, safetensors, timm, open_clip_torch

Weights and inputs are the deterministic fill of tests/support/fill.rs under open_clip's names; only summaries are stored.
"""

import json
import os

import open_clip
import torch
from fill import image, put_fill, summary
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.convnext import ConvNeXt

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = dict(context_length=12, vocab_size=50, width=32, heads=4, layers=2)
IDS = torch.tensor([[47, 3, 9, 48, 0, 0, 0, 0, 0, 0, 0, 0], [47, 5, 5, 5, 30, 22, 1, 12, 13, 14, 15, 48]])


@register_model
def convnext_small_test(pretrained=False, **kwargs):
    kwargs = {name: value for name, value in kwargs.items() if "pretrained" not in name and name != "cache_dir"}
    model = ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), **kwargs)
    model.default_cfg = dict(pool_size=(2, 2))
    return model


CONVNEXT = dict(timm_model_name="convnext_small_test", timm_pool="", timm_proj="mlp", image_size=64)
RESNET = dict(layers=[1, 2, 1, 1], width=8, image_size=64)


def convnext_maps(visual, x):
    x, maps = visual.trunk.stem(x), []
    for stage in visual.trunk.stages:
        x = stage(x)
        maps.append(x)
    return maps


def resnet_maps(visual, x):
    x, maps = visual.stem(x), []
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def case(out, label, vision, maps_of, quick_gelu):
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT, quick_gelu=quick_gelu).eval()
    put_fill(model)
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            # Away from the kinks of ReLU, where a rounding error switches a unit's gradient on or off.
            if name.endswith(("bn1.bias", "bn2.bias", "bn3.bias")):
                parameter.add_(3)
    maps = maps_of(model.visual, image("input", (2, 3, 64, 96)))
    vectors = model.encode_text(IDS)
    total = (vectors * image("up.text", tuple(vectors.shape))).sum()
    out[f"{label}/text"] = vectors.detach()
    for i, level in enumerate(maps):
        out[f"{label}/level{i}"] = summary(f"level{i}", level)
        total = total + (level * image(f"up.{i}", tuple(level.shape))).mean()
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            out[f"{label}/grad/{name}"] = summary(name, parameter.grad)


def published():
    names = {}
    for ours, theirs in [("convnext-large-d-320", "convnext_large_d_320"), ("convnext-base", "convnext_base"),
                         ("rn50", "RN50"), ("rn101", "RN101")]:
        with torch.device("meta"):
            model = CLIP(**open_clip.get_model_config(theirs))
        names[ours] = {name: list(t.shape) for name, t in model.state_dict().items()}
    return names


if __name__ == "__main__":
    results = {}
    case(results, "convnext", CONVNEXT, convnext_maps, False)
    case(results, "resnet", RESNET, resnet_maps, True)
    save_file(results, os.path.join(HERE, "clip.safetensors"))
    with open(os.path.join(HERE, "clip_names.json"), "w") as out:
        models = [f'"{model}": {{\n' + ",\n".join(f"{json.dumps(n)}: {s}" for n, s in names.items()) + "}"
                  for model, names in published().items()]
        out.write("{" + ",\n".join(models) + "}\n")
    print(len(results), "tensors")
