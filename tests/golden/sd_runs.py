"""Makes sd_runs.safetensors: five DreamBooth optimiser steps and whole images from given latents, with the small networks of
sd.py, from diffusers, transformers and torch.

    python tests/golden/sd_runs.py         # torch, numpy, safetensors, diffusers, transformers
"""

import os

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from sd import HERE, TEXT, UNET1, VAE, filled, image
from transformers import CLIPTextConfig, CLIPTextModel

NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PROMPT = torch.tensor([[98, 5, 17, 33] + [99] * 12])
EMPTY = torch.tensor([[98] + [99] * 15])
SCALE = 0.18215


def networks():
    text = filled(CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **TEXT)), "text.")
    return filled(UNet2DConditionModel(**UNET1), "unet."), filled(AutoencoderKL(**VAE), "vae."), text


def dreambooth():
    """Loss and gradient norm of five steps on a batch of two; each step has its own noise and timesteps."""
    unet, vae, text = networks()
    schedule = DDPMScheduler(**NOISE)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-6, weight_decay=1e-2)
    with torch.no_grad():
        latents = SCALE * vae.encode(image("img", (2, 3, 16, 16)) / 2).latent_dist.mean
    rows = []
    for step in range(5):
        noise = image(f"noise{step}", tuple(latents.shape)) / 2
        times = torch.tensor([37 + 190 * step, 980 - 211 * step])
        noisy = schedule.add_noise(latents, noise, times)
        predicted = unet(noisy, times, text(PROMPT.repeat(2, 1)).last_hidden_state).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rows.append(torch.stack([loss.detach(), norm.detach()]))
    return torch.stack(rows)


@torch.no_grad()
def picture(scheduler, steps):
    """(64, 96, 3) bytes from given latents with guidance 1.5, as the published pipeline computes them. Weights that were
    never trained multiply the latents, which are brought back to the size the decoder expects."""
    unet, vae, text = networks()
    context = text(torch.cat([EMPTY, PROMPT])).last_hidden_state
    latents = image("start", (1, 4, 32, 48)) / 2
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        empty, prompted = unet(torch.cat([latents] * 2), t, context).sample.chunk(2)
        latents = scheduler.step(empty + 1.5 * (prompted - empty), t, latents).prev_sample
    decoded = vae.decode(latents / latents.std()).sample
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous()


if __name__ == "__main__":
    common = dict(steps_offset=1, **NOISE)
    results = {
        "dreambooth": dreambooth(),
        "pndm": picture(PNDMScheduler(skip_prk_steps=True, **common), 10),
        "ddim": picture(DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **common), 10),
    }
    save_file(results, os.path.join(HERE, "sd_runs.safetensors"))
    print(results["dreambooth"])
    for name in ("pndm", "ddim"):
        print(name, results[name].float().mean((0, 1)), results[name].float().std((0, 1)))
