"""An adapter written by diffusers and the weights it gives, for tests/lora.rs.

Run: python tests/golden/lora.py    (diffusers 0.42, peft 0.21, transformers, torch)

lora.safetensors is the file of save_lora_weights with alpha 4 at rank 2 (U-Net; one module at rank 3, alpha 6) and
alpha = rank (text encoder). lora-merged.safetensors holds base/NAME and merged/NAME of some adapted layers, names with
our prefixes; merged weights come from peft's merge.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

here = Path(__file__).parent
torch.manual_seed(0)
unet = UNet2DConditionModel(
    block_out_channels=(16, 16),
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=2,
    norm_num_groups=8,
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
text = CLIPTextModel(
    CLIPTextConfig(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=98, eos_token_id=99,
    )
)
odd = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
unet.add_adapter(
    LoraConfig(
        r=2, lora_alpha=4, target_modules=["to_k", "to_out.0"], rank_pattern={odd: 3}, alpha_pattern={odd: 6},
        init_lora_weights=False,
    )
)
text.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False))
with tempfile.TemporaryDirectory() as folder:
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(text)),
        **_collate_lora_metadata({"unet": unet, "text_encoder": text}),
    )
    shutil.copy(Path(folder) / "pytorch_lora_weights.safetensors", here / "lora.safetensors")
out = {}
for prefix, model in (("unet.", unet), ("text_encoder.text_model.", text)):
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            base = module.base_layer.weight.detach().clone()
            merged = base + module.get_delta_weight("default").detach()
            module.merge()
            assert torch.equal(merged, module.base_layer.weight)
            name = prefix + name.removeprefix("text_model.")
            out[f"base/{name}"], out[f"merged/{name}"] = base, merged
save_file({k: v.contiguous() for k, v in out.items()}, here / "lora-merged.safetensors")
