"""Makes segments.safetensors: graph-based segmentations by scikit-image (any 0.2x), of pictures that tests/clouds_refine.rs draws
the same way.

    python tests/golden/segments.py         # numpy, scikit-image, torch, safetensors
"""

import os

import numpy as np
import torch
from fill import uniform
from safetensors.torch import save_file
from skimage.segmentation import felzenszwalb

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {"default": (1, 0.8, 20), "large": (200, 0.5, 20), "rough": (40, 0.0, 1), "soft": (300, 1.7, 50)}

# Flat squares of 12x12 pixels with noise of 0 to 39 levels over them.
squares = (200 * uniform("squares", (4, 5, 3))).astype(np.uint8).repeat(12, axis=0).repeat(12, axis=1)
picture = squares + (40 * uniform("noise", (48, 60, 3))).astype(np.uint8)
results = {}
for name, (scale, sigma, min_size) in CASES.items():
    segments = felzenszwalb(picture, scale=scale, sigma=sigma, min_size=min_size)
    print(name, segments.max() + 1)
    results[name] = torch.tensor(segments.astype(np.int32))
save_file(results, os.path.join(HERE, "segments.safetensors"))
