"""Makes ensemble.safetensors: logits with CLIP's own opinion mixed in, for both kinds of image towers.

    python tests/golden/ensemble.py CLOUDS        # torch, numpy, scipy, safetensors, timm, open_clip_torch

The argument is a checkout of yasserben/CLOUDS. Mask pooling, CLIP's vectors of masks and their comparison with class names are run
from there; what they want of detectron2 is replaced. How both opinions become one is written down here, in probabilities, after
equation 6 of FC-CLIP. Weights and inputs are the deterministic fill of tests/support/fill.rs.
"""

import importlib
import os
import sys
import types

import torch
import torch.nn.functional as F
from clip import CONVNEXT, RESNET, TEXT, convnext_maps, resnet_maps
from fill import image, put_fill
from mask2former import HERE, Conv2d, Registry, ShapeSpec, module
from open_clip.model import CLIP
from safetensors.torch import save_file

SYNONYMS = [2, 1, 2]


def install(clouds):
    ignore = lambda *args, **kwargs: None
    module("fvcore"), module("fvcore.nn"), module("fvcore.nn.weight_init", c2_xavier_fill=ignore)
    module("detectron2"), module("detectron2.config", configurable=lambda made: made)
    module("detectron2.layers", Conv2d=Conv2d, ShapeSpec=ShapeSpec, get_norm=ignore)
    module("detectron2.modeling", BACKBONE_REGISTRY=Registry(), Backbone=torch.nn.Module, ShapeSpec=ShapeSpec)
    module("detectron2.utils"), module("detectron2.utils.comm"), module("detectron2.utils.registry", Registry=Registry)
    root = os.path.join(clouds, "clouds")
    module("clouds", root), module("clouds.modeling", f"{root}/modeling"), module("clouds.utils", f"{root}/utils")
    for part in ("transformer_decoder", "backbone"):
        module(f"clouds.modeling.{part}", f"{root}/modeling/{part}")
    load = importlib.import_module
    return load("clouds.modeling.transformer_decoder.clouds_transformer_decoder"), load("clouds.modeling.backbone.clip").CLIP


def case(out, label, vision, maps_of, code):
    decoder, backbone = code
    root = torch.nn.Module()
    root.backbone = torch.nn.Module()
    root.backbone.clip_model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=TEXT, quick_gelu=label == "resnet").eval()
    put_fill(root)
    clip = root.backbone.clip_model
    vectors = F.normalize(image("text", (5, 24)), dim=-1)
    # As the code has it: a vector of "no object" behind those of the names, whose column is dropped.
    names = torch.cat([vectors, F.normalize(image("void", (1, 24)), dim=-1)])
    logits, masks = image("logits", (2, 10, 4)), image("masks", (2, 10, 16, 24))
    masks[:, 3] = -masks[:, 3].abs() - 0.1
    with torch.no_grad():
        features = maps_of(clip.visual, image("input", (2, 3, 64, 96)))[-1]
        pooled_masks = F.interpolate(masks, features.shape[-2:], mode="bilinear", align_corners=False)
        theirs = types.SimpleNamespace(clip_model=clip)
        if label == "convnext":
            pooled = decoder.MaskPooling()(features, pooled_masks)
            seen = backbone.visual_prediction_forward_convnext(theirs, pooled, None)
        else:
            seen = backbone.visual_prediction_forward_resnet(theirs, features, pooled_masks)
        seen = decoder.get_classification_logits(seen, names, clip.logit_scale, SYNONYMS)[..., :-1]
    valid = (pooled_masks > 0).flatten(2).any(-1)
    print(label, "map", tuple(features.shape), "masks without a pixel", (~valid).sum().item(),
          "nearest to 0", pooled_masks.abs().min().item())
    clip_says, head_says, void = seen.softmax(-1), logits[..., :-1].softmax(-1), logits.softmax(-1)[..., -1:]
    for name, alpha in [("alpha", torch.full(valid.shape, 0.4)), ("valid", 0.4 * valid)]:
        share = alpha[..., None].double()
        both = head_says.double() ** (1 - share) * torch.nan_to_num(clip_says).double() ** share
        both = torch.where(share > 0, both, head_says.double())
        both = both / both.sum(-1, keepdim=True) * (1 - void)
        out[f"{label}/{name}"] = torch.log(torch.cat([both, void], -1) + 1e-8).float().contiguous()


if __name__ == "__main__":
    code, results = install(sys.argv[1]), {}
    case(results, "convnext", CONVNEXT, convnext_maps, code)
    case(results, "resnet", RESNET, resnet_maps, code)
    path = os.path.join(HERE, "ensemble.safetensors")
    save_file(results, path)
    os.chmod(path, 0o644)
    print(len(results), "tensors")
