"""Writes tests/golden/images/: small files in many encodings (made with Pillow) and, as RGB PNG, what Pillow decodes from
each. `python tests/golden/images.py` (Pillow 13, numpy, opencv-python-headless for resize.safetensors)."""

import os
import sys

import numpy as np
from PIL import Image

folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images")
os.makedirs(folder, exist_ok=True)
y, x = np.mgrid[0:37, 0:50]
rgb = np.stack([x * 5, y * 6, 128 + 100 * np.sin(x / 7) * np.cos(y / 5)], -1).astype(np.uint8)
picture = Image.fromarray(rgb)


def save(name, image, **options):
    path = os.path.join(folder, name)
    image.save(path, **options)
    Image.open(path).convert("RGB").save(os.path.join(folder, name + ".expected.png"))


save("baseline.jpg", picture, quality=95, subsampling="4:4:4")
save("subsampled.jpg", picture, quality=75, subsampling="4:2:0")
save("progressive.jpg", picture, quality=90, subsampling="4:4:4", progressive=True)
save("gray.jpg", picture.convert("L"), quality=90)
save("cmyk.jpg", picture.convert("CMYK"), quality=90)
exif = Image.Exif()
exif[0x0112] = 6  # "rotate by 90 degrees", which must not happen
save("rotated.jpg", picture, quality=90, subsampling="4:4:4", exif=exif)
save("lossless.webp", picture, lossless=True)
save("lossy.webp", picture, quality=90)
save("alpha.png", picture.convert("RGBA"))
save("gray.png", picture.convert("L"))
save("palette.png", picture.quantize(16))

if len(sys.argv) > 1:
    sys.exit()

import cv2
from safetensors.numpy import save_file

generator = np.random.default_rng(0)
source = generator.integers(0, 256, (41, 67, 3), dtype=np.uint8)
labels = generator.integers(0, 19, (41, 67), dtype=np.uint8)
golden = {"source": source, "labels": labels}
for height, width in [(20, 33), (41, 40), (64, 67), (100, 131), (7, 90)]:
    size = (width, height)
    name = f"{height}x{width}"
    # Columns first, as Pillow does wherever the aspect is kept (13 changes the order for some other shapes).
    columns = Image.fromarray(source).resize((width, source.shape[0]), Image.BILINEAR)
    golden[f"pillow.{name}"] = np.asarray(columns.resize(size, Image.BILINEAR))
    golden[f"opencv.{name}"] = cv2.resize(source, size, interpolation=cv2.INTER_LINEAR)
    golden[f"nearest.{name}"] = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
save_file(golden, os.path.join(folder, "..", "resize.safetensors"))
