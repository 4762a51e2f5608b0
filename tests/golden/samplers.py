"""Latents after every step of diffusers' schedulers, for tests/samplers.rs.

Run: python tests/golden/samplers.py    (diffusers 0.42, torch, safetensors)

The "network" is a fixed formula of the scaled input x and the timestep t, so that the run needs no weights:
epsilon: 0.3 x + 0.0004 t      v_prediction: -0.4 x + 0.0003 t
Latents start as init_noise_sigma * start. DDPM's noise at step i is noise * cos(i).
Each tensor holds the latents after the steps listed in KEEP[n] that exist, then the last one: [k, 1, 1, 2, 3].
"""

import math
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from safetensors.torch import save_file

BASE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LEADING = dict(timestep_spacing="leading", steps_offset=1)
KINDS = {
    "pndm": lambda **kw: PNDMScheduler(**BASE, skip_prk_steps=True, **{"steps_offset": 1, **kw}),
    "ddim": lambda **kw: DDIMScheduler(**BASE, clip_sample=False, set_alpha_to_one=False, **{"steps_offset": 1, **kw}),
    "ddpm": lambda **kw: DDPMScheduler(**BASE, clip_sample=False, **{"steps_offset": 1, **kw}),
    "euler": lambda **kw: EulerDiscreteScheduler(**BASE, **{"steps_offset": 1, **kw}),
    "dpmpp-2m": lambda **kw: DPMSolverMultistepScheduler(**BASE, **{"steps_offset": 1, **kw}),
}
KEEP = {1: [0], 2: [0, 1, 2], 5: range(6), 10: range(11), 50: [0, 1, 2, 3, 4, 5, 25, 48]}


def network(x, t, prediction):
    t = float(t)
    return 0.3 * x + 0.0004 * t if prediction == "epsilon" else -0.4 * x + 0.0003 * t


def run(name, steps, prediction, start, noise, **extra):
    scheduler = KINDS[name](prediction_type=prediction, **extra)
    scheduler.set_timesteps(steps)
    x, kept = start * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), t, prediction)
        if name == "ddpm":
            import diffusers.schedulers.scheduling_ddpm as module

            module.randn_tensor = lambda *_, **__: noise * math.cos(i)
        x = scheduler.step(output, t, x).prev_sample
        if i in KEEP[steps]:
            kept.append(x.clone())
    kept.append(x.clone())
    return torch.stack(kept), scheduler.timesteps.to(torch.float32)


def main():
    torch.manual_seed(0)
    start, noise = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 3)
    out = {"start": start, "noise": noise}
    cases = [(k, n, p, "") for k in KINDS for n in (5, 10, 50) for p in ("epsilon", "v_prediction")]
    cases += [(k, n, "epsilon", s) for k in KINDS for n in (1, 2) for s in ("", "leading", "trailing")]
    cases += [(k, 10, "v_prediction", s) for k in KINDS for s in ("leading", "linspace", "trailing")]
    for name, steps, prediction, spacing in cases:
        if name == "pndm" and steps == 1:
            continue  # diffusers makes no timesteps at all
        extra = {"timestep_spacing": spacing} if spacing else {}
        latents, timesteps = run(name, steps, prediction, start, noise, **extra)
        key = f"{name}/{steps}/{prediction}/{spacing or 'default'}"
        out[f"{key}/latents"], out[f"{key}/timesteps"] = latents.contiguous(), timesteps.contiguous()
    # clipping and ending at alpha = 1
    latents, timesteps = None, None
    for name, make in (
        ("ddim", DDIMScheduler(**BASE, clip_sample=True, set_alpha_to_one=True)),
        ("ddpm", DDPMScheduler(**BASE, clip_sample=True, variance_type="fixed_large")),
    ):
        KINDS[name] = lambda make=make, **_: make
        latents, timesteps = run(name, 10, "epsilon", start, noise)
        out[f"{name}/10/epsilon/clip/latents"], out[f"{name}/10/epsilon/clip/timesteps"] = latents, timesteps.contiguous()
    save_file({k: v.contiguous() for k, v in out.items()}, Path(__file__).with_suffix(".safetensors"))


main()
