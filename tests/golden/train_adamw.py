"""Writes train_adamw.safetensors: five steps of torch.optim.AdamW with three groups and clipping.

Run with torch, numpy and safetensors installed: python train_adamw.py
Group of `head`: rate x 10; of `norm`: no decay. `gap.weight` has no gradient in step 2 (torch leaves it alone then).
Step k uses the learning rate 1e-2 / (k + 1) and gradients `gradient.K.NAME`; `after.K.NAME` are the values after it.
"""
import pathlib
import numpy as np
import torch
from safetensors.torch import save_file

rng = np.random.default_rng(0)
draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
shapes = {"block.weight": (5, 7), "gap.weight": (3,), "norm.weight": (7,), "head.weight": (2, 3), "head.norm.bias": (4,)}
params = {name: torch.nn.Parameter(draw(*shape)) for name, shape in shapes.items()}
out = {f"start.{n}": p.detach().clone() for n, p in params.items()}
groups = [
    {"params": [params["head.weight"], params["head.norm.bias"]], "scale": 10.0, "weight_decay": 0.01},
    {"params": [params["norm.weight"]], "scale": 1.0, "weight_decay": 0.0},
    {"params": [params["block.weight"], params["gap.weight"]], "scale": 1.0, "weight_decay": 0.01},
]
optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, foreach=False)
norms = []
for step in range(5):
    for name, p in params.items():
        p.grad = None if (name, step) == ("gap.weight", 2) else draw(*shapes[name]) * (0.01 if step == 3 else 1.0)
        if p.grad is not None:
            out[f"gradient.{step}.{name}"] = p.grad.clone()
    norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), 1.0)))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (step + 1) * group["scale"]
    optimizer.step()
    out |= {f"after.{step}.{n}": p.detach().clone() for n, p in params.items()}
for name, p in params.items():
    out[f"exp_avg.{name}"] = optimizer.state[p]["exp_avg"].clone()
    out[f"exp_avg_sq.{name}"] = optimizer.state[p]["exp_avg_sq"].clone()
out["norms"] = torch.tensor(norms)
save_file(out, pathlib.Path(__file__).with_suffix(".safetensors"))
