"""Makes sd.safetensors and sd_keys.json: outputs and gradients of small Stable Diffusion networks, and the names and
shapes of the published ones, from diffusers and transformers.

    python tests/golden/sd.py         # torch, numpy, safetensors, diffusers, transformers

Weights and inputs are the deterministic fill of tests/support/fill.rs, so only results are stored. A result is a summary:
norm, largest absolute value, scalar product with image(name), and 16 evenly spaced values. The gradients of a case are one
matrix with a row per parameter, in the order of our parameter names.
"""

import json
import os

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from fill import fill, image, summary
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_num_threads(2)


def parameters(model):
    """Our name -> parameter. Recent transformers leave out the prefix of the published files."""
    named = {}
    for name, parameter in model.named_parameters():
        is_text = isinstance(model, CLIPTextModel) and not name.startswith("text_model.")
        named["text_model." + name if is_text else name] = parameter
    return dict(sorted(named.items()))


def filled(model, prefix):
    with torch.no_grad():
        for name, parameter in parameters(model).items():
            parameter.copy_(fill(prefix + name, tuple(parameter.shape)))
    return model.eval()


def gradients(model):
    return torch.stack([summary(name, p.grad) for name, p in parameters(model).items()])


def weighted(name, tensor):
    """A loss that reaches every value of a result with its own weight."""
    return (tensor * image(name, tuple(tensor.shape))).sum()


UNET1 = dict(
    block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
# As in SD 2.x: heads per level, linear projections; attention in the middle level, where SD has none at the lowest one.
UNET2 = dict(
    block_out_channels=(16, 32, 32), layers_per_block=2, cross_attention_dim=24, attention_head_dim=(2, 4, 8),
    norm_num_groups=4, use_linear_projection=True,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
VAE = dict(
    block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)
TEXT = dict(
    vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=16, bos_token_id=98, eos_token_id=99, pad_token_id=99,
)


def unet_case(case, config, latents_shape, context_shape, timesteps):
    model = filled(UNet2DConditionModel(**config), "unet.")
    latents = (image("lat", latents_shape) / 2).requires_grad_()
    context = image("ctx", context_shape).requires_grad_()
    out = model(latents, torch.tensor(timesteps), context).sample
    weighted("loss", out).backward()
    return {
        f"{case}/output": summary("output", out),
        f"{case}/latents": summary("latents", latents.grad),
        f"{case}/context": summary("context", context.grad),
        f"{case}/gradients": gradients(model),
    }


def vae_case():
    model = filled(AutoencoderKL(**VAE), "vae.")
    images = (image("img", (2, 3, 16, 24)) / 2).requires_grad_()
    latents = image("lat", (2, 4, 6, 5)).requires_grad_()
    posterior = model.encode(images).latent_dist
    sample = posterior.mean + posterior.std * image("noise", (2, 4, 8, 12))
    decoded = model.decode(latents).sample
    loss = weighted("mean", posterior.mean) + weighted("logvar", posterior.logvar) + weighted("sample", sample)
    (loss + weighted("decoded", decoded)).backward()
    return {
        "vae/mean": summary("mean", posterior.mean),
        "vae/logvar": summary("logvar", posterior.logvar),
        "vae/sample": summary("sample", sample),
        "vae/decoded": summary("decoded", decoded),
        "vae/images": summary("images", images.grad),
        "vae/latents": summary("latents", latents.grad),
        "vae/gradients": gradients(model),
    }


def text_case(case, activation):
    model = filled(CLIPTextModel(CLIPTextConfig(hidden_act=activation, **TEXT)), "text.")
    ids = [[98, 5, 17, 33] + [99] * 12, [98] + [7, 80] * 7 + [99]]
    out = model(torch.tensor(ids)).last_hidden_state
    weighted("loss", out).backward()
    return {f"{case}/output": summary("output", out), f"{case}/gradients": gradients(model)}


def published():
    """Names and shapes of the SD 1.x networks and of the SD 2.x U-Net and text encoder, without their values."""
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
            "unet_2": UNet2DConditionModel(
                cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
            ),
        }
    return {part: {name: list(p.shape) for name, p in parameters(model).items()} for part, model in models.items()}


def compact(keys):
    """One line per part."""
    return "{\n" + ",\n".join(f"{json.dumps(part)}: {json.dumps(names, separators=(',', ':'))}" for part, names in keys.items()) + "\n}\n"


if __name__ == "__main__":
    torch.manual_seed(0)
    results = {
        **unet_case("unet_1", UNET1, (2, 4, 8, 8), (2, 16, 32), [500, 7]),
        **unet_case("unet_2", UNET2, (1, 4, 10, 14), (1, 7, 24), [999]),
        **unet_case("unet_odd", UNET2, (1, 4, 6, 9), (1, 7, 24), [0]),
        **vae_case(),
        **text_case("text_quick_gelu", "quick_gelu"),
        **text_case("text_gelu", "gelu"),
    }
    save_file(results, os.path.join(HERE, "sd.safetensors"))
    keys = published()
    with open(os.path.join(HERE, "sd_keys.json"), "w") as file:
        file.write(compact(keys))
    for part, names in keys.items():
        print(part, len(names), sum(int(np.prod(shape)) for shape in names.values()))
