"""Small PyTorch checkpoints for tests/torch_files.rs, in both file layouts, and hostile ones.

Run: python tests/golden/torch_files.py    (torch)

nested.pth, nested-legacy.pth: {"epoch": 3, "meta": {...}, "state_dict": {...}}
flat.pth: a plain state_dict of a module; groups.pth: two groups of weights side by side
evil.pth, evil-beside.pth, evil-inside.pth: a call of os.system alone, beside the weights, among the weights
"""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import torch

here = Path(__file__).parent / "torch_files"
here.mkdir(exist_ok=True)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/pickle-was-executed",)


def tensors():
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8
    tied = torch.tensor([1.5, -2.0])
    return OrderedDict(
        [
            ("base", base),
            ("transposed", base.permute(2, 0, 1)),
            ("slice", base[1, 1:, ::2]),
            ("expanded", torch.tensor([7.0]).expand(2, 3)),
            ("tied.a", tied),
            ("tied.b", tied),
            ("param", torch.nn.Parameter(torch.tensor([[0.25]]))),
            ("scalar", torch.tensor(3.5)),
            ("empty", torch.zeros(0, 4)),
            ("f16", torch.tensor([1.0, -0.5]).half()),
            ("bf16", torch.tensor([1.0, -0.5]).bfloat16()),
            ("f64", torch.tensor([1.0, -0.125]).double()),
            ("i64", torch.tensor([1, -(2**40)])),
            ("i32", torch.tensor([1, -2], dtype=torch.int32)),
            ("i16", torch.tensor([1, -2], dtype=torch.int16)),
            ("i8", torch.tensor([1, -2], dtype=torch.int8)),
            ("u8", torch.tensor([1, 254], dtype=torch.uint8)),
            ("bool", torch.tensor([True, False])),
        ]
    )


def main():
    meta = {"config": "text", "unsupported": torch.ones(2, dtype=torch.complex64), "args": Namespace(lr=0.1, big=2**70), "classes": ("road", "sky"), "none": None}
    nested = {"epoch": 3, "meta": meta, "state_dict": tensors()}
    torch.save(nested, here / "nested.pth")
    torch.save(nested, here / "nested-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(nested, here / "nested-protocol4.pth", pickle_protocol=4)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), here / "flat.pth")
    torch.save({"student": {"w": torch.ones(1)}, "teacher": {"w": torch.zeros(1)}}, here / "groups.pth")
    torch.save(Evil(), here / "evil.pth")
    torch.save(Evil(), here / "evil-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"x": Evil(), "state_dict": {"w": torch.ones(2)}}, here / "evil-beside.pth")
    torch.save({"w": torch.ones(2), "x": Evil()}, here / "evil-inside.pth")


main()
