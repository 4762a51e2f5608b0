"""Prints the golden tables of tests/train_optim.rs: diffusers' schedules and mmcv's poly.  python train_schedule.py"""
import torch
from diffusers.optimization import get_scheduler

BASE, STEPS, WARMUP, AT = 5e-4, 100, 10, [0, 1, 9, 10, 11, 40, 55, 77, 99, 100, 120]
for name, extra in [("constant", {}), ("constant_with_warmup", {}), ("linear", {}), ("cosine", {}),
                    ("cosine_with_restarts", {"num_cycles": 3}), ("polynomial", {"power": 2.0})]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    warmup = {} if name == "constant" else {"num_warmup_steps": WARMUP}
    total = {} if name.startswith("constant") else {"num_training_steps": STEPS}
    schedule = get_scheduler(name, optimizer, **warmup, **total, **extra)
    values = []
    for _ in range(AT[-1] + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step(); schedule.step()
    print(name, [float(f"{values[i]:.10g}") for i in AT])
