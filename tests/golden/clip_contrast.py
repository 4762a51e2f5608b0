"""Writes clip_contrast.safetensors: the contrastive loss of open_clip on a small CLIP, and the gradient of every parameter.

    python tests/golden/clip_contrast.py        (needs open_clip_torch, timm, torch, safetensors)

Weights and inputs come from `fill.py` under open_clip's names; of gradients only summaries are stored.
"""

import math
import os

import torch
from clip import CONVNEXT, IDS, TEXT
from fill import image, put_fill, summary
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MORE = torch.tensor([[47, 20, 9, 1, 2, 48, 0, 0, 0, 0, 0, 0], [47, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])


def loss_alone(out):
    images, texts = image("images", (5, 7)).requires_grad_(), image("texts", (5, 7)).requires_grad_()
    scale = torch.tensor(1.3, requires_grad=True)
    normal = torch.nn.functional.normalize
    loss = ClipLoss()(normal(images, dim=-1), normal(texts, dim=-1), scale.exp())
    loss.backward()
    out.update({"alone/loss": loss, "alone/images": images.grad, "alone/texts": texts.grad, "alone/scale": scale.grad})


def whole(out):
    model = CLIP(embed_dim=24, vision_cfg=CONVNEXT, text_cfg=TEXT, quick_gelu=False).eval()
    put_fill(model)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(20.0))
    images, ids = image("input", (4, 3, 64, 96)), torch.cat([IDS, MORE])
    out["whole/images"], out["whole/texts"] = model.encode_image(images).detach(), model.encode_text(ids).detach()
    features, texts, scale = model(images, ids)
    loss = ClipLoss()(features, texts, scale)
    loss.backward()
    out["whole/loss"] = loss
    for name, parameter in model.named_parameters():
        out[f"whole/grad/{name}"] = summary(name, parameter.grad)


if __name__ == "__main__":
    results = {}
    loss_alone(results)
    whole(results)
    save_file({name: tensor.detach().contiguous() for name, tensor in results.items()}, os.path.join(HERE, "clip_contrast.safetensors"))
    print(len(results), "tensors", results["whole/loss"].item())
