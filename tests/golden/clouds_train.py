"""Writes clouds_train.safetensors: colour jitter with given draws, nearest resizing of labels, sizes and offsets of crops, AdamW with
two decay groups and CLOUDS' clipping.

Run with torch, numpy, opencv-python-headless and safetensors installed: python clouds_train.py
`jitter.image` (H, W, 3) u8; `jitter.K.draws` = brightness, contrast first (0 or 1), contrast, saturation, hue with NaN for "none";
`jitter.K.image` the result. `nearest.FROM.TO` = source indices. `geometry` rows: height, width, frame height, frame width, scale, u,
scaled height, scaled width, top, left. `adamw.*`: as in train_adamw.py with two groups.
"""
import pathlib
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

rng = np.random.default_rng(0)
out = {}

# OpenCV's vector code cuts values off on the way back from HSV; pixels that do not fill a vector at the end of a row are rounded
# instead. The image is 64 pixels wide, so that there are none.
# detectron2's ColorAugSSDTransform, with its draws as arguments; works on BGR.
def convert(image, alpha=1, beta=0):
    return np.clip(image.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)

def saturation(image, factor):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=factor)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

def hue(image, steps):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + steps) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

def jitter(rgb, brightness, contrast_first, contrast, factor, steps):
    image = np.ascontiguousarray(rgb[:, :, ::-1])
    image = image if brightness is None else convert(image, beta=brightness)
    if contrast_first and contrast is not None:
        image = convert(image, alpha=contrast)
    image = image if factor is None else saturation(image, factor)
    image = image if steps is None else hue(image, steps)
    if not contrast_first and contrast is not None:
        image = convert(image, alpha=contrast)
    return np.ascontiguousarray(image[:, :, ::-1])

levels = np.linspace(0, 255, 12).astype(np.uint8)
grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(27, 64, 3)
noise = rng.integers(0, 256, (27, 64, 3), dtype=np.uint8)
gray = np.repeat(rng.integers(0, 256, (10, 64, 1), dtype=np.uint8), 3, axis=2)
image = np.concatenate([grid, noise, gray])
out["jitter.image"] = image
cases = [
    (None, 1, None, None, None), (21.3, 1, None, None, None), (-31.9, 0, 1.37, None, None), (None, 0, None, 1.45, None),
    (None, 0, None, None, -18), (None, 1, None, None, 7), (12.5, 1, 0.61, 0.52, 18), (-8.25, 0, 1.49, 1.21, -3),
]
for k, (b, first, c, s, h) in enumerate(cases):
    out[f"jitter.{k}.draws"] = np.array([np.nan if v is None else v for v in (b, first, c, s, h)], np.float32)
    b, c, s = (None if v is None else float(np.float32(v)) for v in (b, c, s))
    out[f"jitter.{k}.image"] = jitter(image, b, first, c, s, h)

# Labels are float64 on the way, so detectron2 resizes them with torch. Its torch (1.9) takes the kernel for channels-last tensors, which
# computes source indices in f32; newer ones take that kernel for several channels only, and one in f64 for single ones.
sides = [(1914, 1804), (1914, 1782), (1914, 1281), (760, 676), (1280, 1184), (1280, 1535), (1024, 769), (2048, 1537), (7, 23), (23, 7)]
for source, target in sides:
    values = torch.arange(source, dtype=torch.float64).view(1, 1, 1, source).repeat(1, 8, 1, 1)
    values = values.contiguous(memory_format=torch.channels_last)
    found = F.interpolate(values, size=(1, target), mode="nearest")[0, 0, 0].to(torch.int64).numpy()
    ratio = np.float32(source) / np.float32(target)
    single = np.minimum((np.arange(target, dtype=np.float32) * ratio).astype(np.int64), source - 1)
    exact = np.arange(target) * source // target
    print(source, target, "torch differs from f32 at", (found != single).sum(), "from integers at", (found != exact).sum())
    out[f"nearest.{source}.{target}"] = found.astype(np.int64)

# detectron2's ResizeScale and FixedSizeCrop.
rows = []
sets = [((1052, 1914), (1052, 1914)), ((1046, 1914), (1052, 1914)), ((760, 1280), (760, 1280)), ((1024, 2048), (1024, 2048)), ((500, 375), (1024, 2048))]
for size, frame in sets:
    for s in (0.5, 0.7303, 1.0, 1.5, 2.0):
        for u in (0.0, 0.25, 0.5, 1.0):
            target = np.multiply(frame, s)
            scale = np.minimum(target[0] / size[0], target[1] / size[1])
            scaled = np.round(np.multiply(size, scale)).astype(int)
            offset = np.round(np.multiply(np.maximum(np.subtract(scaled, (768, 768)), 0), u)).astype(int)
            rows.append([*size, *frame, s, u, *scaled, *offset])
out["geometry"] = np.array(rows, np.float64)

# AdamW, decay 0.05 and 0, one norm over all weights, clipped to 0.01.
shapes = {"sem_seg_head.linear.weight": (5, 7), "sem_seg_head.linear.bias": (5,), "sem_seg_head.norm.weight": (7,),
          "sem_seg_head.norm.bias": (7,), "sem_seg_head.predictor.query_feat.weight": (3, 4),
          "sem_seg_head.pixel_decoder.transformer.level_embed": (3, 4)}
draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
params = {name: torch.nn.Parameter(draw(*shape)) for name, shape in shapes.items()}
out |= {f"adamw.start.{n}": p.detach().clone().numpy() for n, p in params.items()}
plain = [n for n in params if ".norm." in n or "query_feat" in n]
optimizer = torch.optim.AdamW(
    [{"params": [p for n, p in params.items() if n not in plain], "weight_decay": 0.05},
     {"params": [params[n] for n in plain], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, foreach=False)
for step in range(5):
    for name, p in params.items():
        p.grad = draw(*shapes[name]) * (1e-4 if step == 3 else 1.0)
        out[f"adamw.gradient.{step}.{name}"] = p.grad.clone().numpy()
    torch.nn.utils.clip_grad_norm_(params.values(), 0.01)
    optimizer.step()
    out |= {f"adamw.after.{step}.{n}": p.detach().clone().numpy() for n, p in params.items()}
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
