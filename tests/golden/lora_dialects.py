"""One adapter in the files of four tools, and the weights it gives, for tests/lora_dialects.rs.

Run: python tests/golden/lora_dialects.py    (diffusers 0.42, peft 0.21, transformers, torch)

Folder lora-dialects: kohya.safetensors is what diffusers' convert_state_dict_to_kohya writes (with its alphas set to 1 at rank 2: scale
0.5), with a 3x3 convolution (LoCon); peft/unet and peft/text_encoder are save_pretrained's folders; old.safetensors has the names of
diffusers before 0.17 (attention layers only; this release still reads them). merged.safetensors holds base/NAME and merged/NAME of
layers, merged by diffusers (kohya, old) and peft; all must agree.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

folder = Path(__file__).parent / "lora-dialects"
SCALE = 0.5
SIZES = dict(
    block_out_channels=(8,), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4, sample_size=8,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
)
TEXT = dict(
    vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
    bos_token_id=18, eos_token_id=19,
)


def networks():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SIZES), CLIPTextModel(CLIPTextConfig(**TEXT))


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WIDE = ATTENTION + ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "mid_block.resnets.0.conv1"]
unet, text = networks()
torch.manual_seed(1)
unet = get_peft_model(unet, LoraConfig(r=2, lora_alpha=1, target_modules=WIDE, init_lora_weights=False))
text = get_peft_model(text, LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "out_proj", "fc1"], init_lora_weights=False))
for name, model in (("unet", unet), ("text_encoder", text)):
    model.save_pretrained(folder / "peft" / name)
    (folder / "peft" / name / "README.md").unlink(missing_ok=True)


def outer(name):
    """Our name of a text encoder's layer, also where transformers dropped the outermost word."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


merged = {}
for prefix, model, rename in (("unet", unet, lambda name: name), ("text_encoder", text, outer)):
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "base_layer"):
            base = module.base_layer.weight.detach().clone()
            merged[f"base/{prefix}.{rename(name)}"] = base
            merged[f"merged/{prefix}.{rename(name)}"] = base + module.get_delta_weight("default").detach()
save_file({key: value.contiguous() for key, value in merged.items()}, folder / "merged.safetensors")

plain = {}
for prefix, rename in (("unet", lambda name: name), ("text_encoder", outer)):
    for key, value in load_file(folder / "peft" / prefix / "adapter_model.safetensors").items():
        plain[f"{prefix}.{rename(key.removeprefix('base_model.model.'))}"] = value
kohya = convert_state_dict_to_kohya(plain)
assert any(key.startswith("lora_te1_text_model") for key in kohya) and any(key.startswith("lora_unet_mid") for key in kohya)
kohya = {key: torch.tensor(1.0) if key.endswith(".alpha") else value for key, value in kohya.items()}
save_file(kohya, folder / "kohya.safetensors", metadata={"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1"})

old = {}
for key, value in plain.items():
    module, half = key.rsplit(".lora_", 1)
    block, layer = (module.removesuffix(".0")).rsplit(".", 1)
    if layer not in ("to_q", "to_k", "to_v", "to_out") or not key.startswith("unet."):
        continue
    end = "down" if half.startswith("A") else "up"
    # These files have no alpha: the scale goes into the up matrix.
    old[f"{block}.processor.{layer}_lora.{end}.weight"] = value * (SCALE if end == "up" else 1)
save_file(old, folder / "old.safetensors")


def fused(file):
    """The U-Net's weights after diffusers loaded a file and fused it."""
    unet, text = networks()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipe = StableDiffusionPipeline(vae, text, None, unet, DDIMScheduler(), None, None, requires_safety_checker=False)
    pipe.load_lora_weights(load_file(file))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.unet.state_dict()


for file, targets in (("kohya.safetensors", WIDE), ("old.safetensors", ATTENTION)):
    found = fused(folder / file)
    for name in [key.removeprefix("merged/unet.") for key in merged if key.startswith("merged/unet.")]:
        if any(name == target or name.endswith(f".{target}") for target in targets):
            torch.testing.assert_close(found[f"{name}.weight"], merged[f"merged/unet.{name}"], atol=1e-6, rtol=0)
print(json.dumps({file.name: file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}, indent=1))
