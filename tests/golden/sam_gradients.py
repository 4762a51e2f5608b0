"""Makes sam_gradients.safetensors: results of a small Segment Anything and the gradients of all its parameters, from
segment-anything 1.0 (PyPI).

    python tests/golden/sam_gradients.py         # torch, torchvision, numpy, safetensors, segment-anything

Weights and inputs are the deterministic fill of tests/support/fill.rs, so only summaries are stored. Heads of 4 features are shorter than
the side of the image in tokens and longer than that of windows.
"""

import os
from functools import partial

import numpy as np
import torch
from fill import image, put_fill, summary, uniform
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer

HERE = os.path.dirname(os.path.abspath(__file__))
DIM, SIZE, GRID = 32, 80, 5


def filled(module, prefix):
    put_fill(module, prefix)
    return module


def pixels(name, count):
    return torch.tensor((SIZE * uniform(name, (count, 2))).astype(np.float32))


def main():
    parts = {
        "image_encoder": ImageEncoderViT(
            img_size=SIZE, patch_size=16, embed_dim=32, depth=2, num_heads=8, out_chans=DIM, qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
        ),
        "prompt_encoder": PromptEncoder(DIM, (GRID, GRID), (SIZE, SIZE), 16),
        "mask_decoder": MaskDecoder(
            transformer_dim=DIM, transformer=TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=4, mlp_dim=64),
            iou_head_depth=3, iou_head_hidden_dim=24,
        ),
    }  # fmt: skip
    for name, part in parts.items():
        filled(part, f"{name}.")
    encoder, prompts, decoder = parts.values()
    embedding = encoder(image("image", (1, 3, SIZE, SIZE)))
    points, labels = pixels("points", 15).reshape(3, 5, 2), torch.tensor([[1.0, 1, 1, 1, 1], [1, 0, 1, 0, -1], [0, 0, 1, -1, -1]])
    boxes, masks = pixels("boxes", 6).reshape(3, 4), image("masks", (3, 1, 4 * GRID, 4 * GRID))
    results, loss = {"embedding": summary("embedding", embedding.detach())}, 0
    for name, given in {"points": ((points, labels), None, None), "again": (None, boxes, masks)}.items():
        sparse, dense = prompts(*given)
        logits, quality = decoder.predict_masks(embedding, prompts.get_dense_pe(), sparse, dense)
        results[f"{name}/logits"], results[f"{name}/quality"] = summary("logits", logits.detach()), summary("quality", quality.detach())
        loss = loss + (logits * image(f"{name} logits", logits.shape)).mean() + (quality * image(f"{name} quality", quality.shape)).mean()
    loss.backward()
    results["loss"] = loss.detach().reshape(1)
    for name, part in parts.items():
        for parameter, tensor in part.named_parameters():
            results[f"grad/{name}.{parameter}"] = summary(f"{name}.{parameter}", tensor.grad)
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, os.path.join(HERE, "sam_gradients.safetensors"))
    print(len(results), "tensors, loss", loss.item())


main()
