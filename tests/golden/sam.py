"""Makes sam.safetensors and sam_keys.json: outputs of small Segment Anything networks, and the names and shapes of the
published ones, from segment-anything 1.0 (PyPI) and MobileSAM (github.com/ChaoningZhang/MobileSAM, on PYTHONPATH).

    PYTHONPATH=MobileSAM python tests/golden/sam.py         # torch, torchvision, timm, numpy, safetensors, segment-anything

Weights and inputs are the deterministic fill of tests/support/fill.rs, so only results are stored, each as a summary: norm,
largest absolute value, scalar product with image(name), and 16 evenly spaced values.
"""

import json
import os
from functools import partial

import numpy as np
import torch
from mobile_sam.modeling.tiny_vit_sam import LayerNorm2d, TinyViT
from mobile_sam.build_sam import build_sam_vit_t
from safetensors.torch import save_file
from segment_anything import SamPredictor, build_sam_vit_b
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

HERE = os.path.dirname(os.path.abspath(__file__))
DIM, SIZE, GRID = 32, 80, 5
TINY_SIZE, TINY_GRID = 112, 7


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
    v = 2 * u - 1
    if name.endswith("running_var"):
        v = 1 + 0.5 * u
    elif name.endswith("running_mean"):
        v = 0.1 * v
    elif len(shape) >= 2:
        v = v * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return torch.tensor(v.astype(np.float32))


def image(name, shape):
    return torch.tensor((2 * (2 * uniform(name, shape) - 1)).astype(np.float32))


def summary(name, tensor):
    flat = tensor.detach().double().flatten()
    n = flat.numel()
    dot = (flat * image(name, (n,)).double()).sum()
    picked = flat[[i * (n - 1) // 15 for i in range(16)]]
    return torch.cat([flat.norm()[None], flat.abs().max()[None], dot[None], picked]).float()


def filled(module, prefix):
    module.train()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(fill(f"{prefix}{name}", tuple(tensor.shape)))
    return module.eval()


def pixels(name, count, size):
    """Coordinates within an image of that size."""
    return torch.tensor((size * uniform(name, (count, 2))).astype(np.float32))


@torch.no_grad()
def decode(results, prompt_encoder, decoder, embedding):
    points = pixels("points", 35, SIZE).reshape(7, 5, 2)
    labels = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, -1]] * 3 + [[0, 0, 1, -1, -1]], dtype=torch.float32)
    corners = pixels("boxes", 14, SIZE).reshape(7, 4)
    masks = image("masks", (7, 1, 4 * GRID, 4 * GRID))
    cases = {
        "points": ((points, labels), None, None, True),
        "single": ((points, labels), None, None, False),
        "boxes": (None, corners, None, True),
        "points_boxes": ((points, labels), corners, None, True),
        "points_masks": ((points, labels), None, masks, True),
        "masks": (None, None, masks, False),
    }
    for name, (given, boxes, mask, multimask) in cases.items():
        sparse, dense = prompt_encoder(given, boxes, mask)
        logits, quality = decoder(embedding, prompt_encoder.get_dense_pe(), sparse, dense, multimask)
        results[f"{name}/logits"] = summary("logits", logits)
        results[f"{name}/quality"] = summary("quality", quality)


def predict(results, sam):
    """The best masks for five points each on a picture of 48x64 pixels, and again with those masks as prompts."""
    predictor = SamPredictor(sam)
    predictor.set_image((256 * uniform("picture", (48, 64, 3))).astype(np.uint8))
    points = torch.tensor((uniform("places", (7, 5, 2)) * [64, 48]).astype(np.int64))
    coordinates = predictor.transform.apply_coords_torch(points, (48, 64))
    labels = torch.ones(7, 5)
    mask_input = None
    for name in ("first", "second"):
        masks, quality, low = predictor.predict_torch(coordinates, labels, mask_input=mask_input, multimask_output=True)
        best = quality.argmax(dim=1)
        rows = torch.arange(7)
        results[f"predict/{name}"] = masks[rows, best].to(torch.uint8).contiguous()
        results[f"predict/{name}_best"] = torch.stack([best.float(), quality[rows, best]])
        mask_input = low[rows, best][:, None]


@torch.no_grad()
def small():
    results = {}
    vit = ImageEncoderViT(
        img_size=SIZE, patch_size=16, embed_dim=32, depth=3, num_heads=2, out_chans=DIM, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
    )  # fmt: skip
    embedding = filled(vit, "image_encoder.")(image("image", (1, 3, SIZE, SIZE)))
    results["vit/embedding"] = summary("embedding", embedding)
    prompts = PromptEncoder(DIM, (GRID, GRID), (SIZE, SIZE), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=4, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=DIM, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=24)
    decode(results, filled(prompts, "prompt_encoder."), filled(decoder, "mask_decoder."), embedding)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    predict(results, Sam(vit, prompts, decoder, pixel_mean=mean, pixel_std=std).eval())

    tiny = TinyViT(
        img_size=TINY_SIZE, num_classes=0, embed_dims=[16, 24, 32, 320], depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 10],
        window_sizes=[7, 4, 3, 7], drop_path_rate=0.0,
    )  # fmt: skip
    tiny.neck = torch.nn.Sequential(
        torch.nn.Conv2d(320, DIM, 1, bias=False), LayerNorm2d(DIM), torch.nn.Conv2d(DIM, DIM, 3, padding=1, bias=False), LayerNorm2d(DIM)
    )
    filled(tiny, "image_encoder.")

    def forward(xs):
        # The published forward pass, for a grid that is not 64x64.
        xs = tiny.patch_embed(xs)
        for layer in tiny.layers:
            xs = layer(xs)
        return tiny.neck(xs.view(len(xs), TINY_GRID, TINY_GRID, -1).permute(0, 3, 1, 2))

    images = image("images", (2, 3, TINY_SIZE, TINY_SIZE))
    results["tiny/embedding"] = summary("embedding", forward(images))
    for module in tiny.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    results["tiny/of_image"] = summary("embedding", forward(images[:1]))
    save_file(results, os.path.join(HERE, "sam.safetensors"))


def names():
    unused = ("num_batches_tracked", "image_encoder.norm_head", "image_encoder.head")
    models = {"vit_b": build_sam_vit_b(), "mobile": build_sam_vit_t()}
    keys = {
        model: {name: list(tensor.shape) for name, tensor in sorted(sam.state_dict().items()) if not any(word in name for word in unused)}
        for model, sam in models.items()
    }
    with open(os.path.join(HERE, "sam_keys.json"), "w") as file:
        json.dump(keys, file, separators=(",", ":"))


small()
names()
