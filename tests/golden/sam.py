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
from fill import image, put_fill, summary, uniform
from mobile_sam.modeling.tiny_vit_sam import LayerNorm2d, TinyViT
from mobile_sam.build_sam import build_sam_vit_t
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, build_sam_vit_b
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

HERE = os.path.dirname(os.path.abspath(__file__))
DIM, SIZE, GRID = 32, 80, 5
TINY_SIZE, TINY_GRID = 112, 7
# Settings of the automatic masks; the scores of random networks lie elsewhere than those of trained ones.
AUTOMATIC = {
    "whole": dict(pred_iou_thresh=0.02, stability_score_thresh=0.8, box_nms_thresh=0.97),
    "crops": dict(
        pred_iou_thresh=0.0, stability_score_thresh=0.5, box_nms_thresh=0.9, crop_n_layers=1, crop_n_points_downscale_factor=2
    ),
    "clean": dict(pred_iou_thresh=0.0, stability_score_thresh=0.5, box_nms_thresh=0.97, min_mask_region_area=300),
}  # fmt: skip



def filled(module, prefix):
    module.train()
    put_fill(module, prefix)
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
    # Boxes alone, and boxes with two points inside and one outside.
    corners = torch.tensor(uniform("corners", (7, 4)) * [32, 24, 32, 24] + [0, 0, 32, 24])
    boxes = predictor.transform.apply_boxes_torch(corners, (48, 64))
    labels = torch.tensor([[1, 1, 0]] * 7)
    for name, given in (("boxes", (None, None)), ("both", (coordinates[:, :3], labels))):
        masks, quality, _ = predictor.predict_torch(*given, boxes=boxes, multimask_output=True)
        best = quality.argmax(dim=1)
        results[f"predict/{name}"] = masks[rows, best].to(torch.uint8).contiguous()
        results[f"predict/{name}_best"] = torch.stack([best.float(), quality[rows, best]])


def automatic(results, sam):
    """Everything in a picture of 240x300 pixels: flat squares of 30x30."""
    squares = (256 * uniform("squares", (8, 10, 3))).astype(np.uint8)
    picture = squares.repeat(30, axis=0).repeat(30, axis=1)
    # One channel becomes a constant that lowers all logits, so that masks are small enough to lie within crops.
    decoder = sam.mask_decoder
    decoder.output_upscaling[3].weight[:, 0] = 0
    decoder.output_upscaling[3].bias[0] = 1
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[2].weight[0] = 0
        mlp.layers[2].bias[0] = -0.3
    for name, settings in AUTOMATIC.items():
        found = SamAutomaticMaskGenerator(sam, points_per_side=9, stability_score_offset=0.01, **settings).generate(picture)
        masks = np.stack([one["segmentation"] for one in found])
        # Every 40th pixel and the area tell masks apart.
        results[f"{name}/masks"] = torch.tensor(masks.reshape(len(found), -1)[:, ::40].astype(np.uint8))
        numbers = [
            [one["area"], *one["bbox"], *one["crop_box"], *one["point_coords"][0], one["predicted_iou"], one["stability_score"]]
            for one in found
        ]
        results[f"{name}/numbers"] = torch.tensor(numbers, dtype=torch.float32)
        print(name, len(found), "masks,", len({tuple(one["crop_box"]) for one in found}), "crops")


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
    sam = Sam(vit, prompts, decoder, pixel_mean=mean, pixel_std=std).eval()
    predict(results, sam)
    automatic(results, sam)

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
