"""Makes sd_folder/: two tiny pipeline folders of equal networks and what Python computes with them.

    python tests/golden/sd_folder.py  # torch, numpy, safetensors, diffusers 0.42, transformers 5

`now` is written by `save_pretrained`. `old` has the layout of the first published folders: few configuration keys, pickled
weights, the autoencoder's former attention names as 1x1 convolutions in half precision, position ids, tokenizer in two files.
"""

import collections
import json
import os
import shutil

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sd import filled, image, summary

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sd_folder")
LENGTH = 12
PROMPTS = [
    "", "a photo of a sks urban scene", "A  Photo of\n\tSKS   traffic lights!!", "it's the driver's 2nd car, isn't it?",
    "Stra\u00dfe in M\u00fcnchen, caf\u00e9 / cafe\u0301", "\u6771\u4eac 2024", "a photo " * 10, "<|endoftext|> a",
]


def bytes_to_symbols():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]


def vocabulary():
    """CLIP's order: bytes, bytes at the end of a word, merges, start, end."""
    pairs = "p h,ph o,t o</w>,pho to</w>,o f</w>,s k,sk s</w>,a n,e r,er s</w>,c a,ca r</w>,' s</w>".split(",")
    merges = [tuple(pair.split()) for pair in pairs]
    symbols = bytes_to_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def networks(vocab_size):
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        sample_size=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
    ))
    return filled(unet, "unet."), filled(vae, "vae."), filled(text, "text.")


def expected(case, tokenizer, unet, vae, text):
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        context = text(ids[1:3]).last_hidden_state
        noise = unet(image("lat", (2, 4, 8, 8)), torch.tensor([981, 1]), context).sample
        mean = vae.encode(image("img", (1, 3, 16, 16)) / 2).latent_dist.mean
        decoded = vae.decode(mean).sample
    results = {"context": context, "noise": noise, "mean": mean, "decoded": decoded}
    return {f"{case}/ids": ids.int(), **{f"{case}/{name}": summary(name, value) for name, value in results.items()}}


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file, indent=2)


def write_old(folder, vocab, merges, unet, vae, text):
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name):
        for new, old in former.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        return name

    def as_conv(name, tensor):
        return tensor[:, :, None, None] if "attentions" in name and tensor.dim() == 2 else tensor

    pick = lambda config, keys: {"_class_name": config["_class_name"], "_diffusers_version": "0.2.2", **{k: config[k] for k in keys}}
    common = ["act_fn", "block_out_channels", "down_block_types", "up_block_types", "in_channels", "out_channels",
              "layers_per_block", "norm_num_groups", "sample_size"]
    write_json(f"{folder}/unet/config.json", pick(unet.config, common + [
        "attention_head_dim", "center_input_sample", "cross_attention_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift",
        "mid_block_scale_factor", "norm_eps"]))
    torch.save(collections.OrderedDict(unet.state_dict()), f"{folder}/unet/diffusion_pytorch_model.bin")
    write_json(f"{folder}/vae/config.json", pick(vae.config, common + ["latent_channels"]))
    weights = {old_name(name): as_conv(name, tensor).half().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(weights, f"{folder}/vae/diffusion_pytorch_model.fp16.safetensors")
    config = text.config
    write_json(f"{folder}/text_encoder/config.json", {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": config.hidden_size, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size, "layer_norm_eps": 1e-05, "max_position_embeddings": LENGTH,
        "model_type": "clip_text_model", "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers, "pad_token_id": 1, "torch_dtype": "float32",
        "transformers_version": "4.21.0.dev0", "vocab_size": config.vocab_size})
    weights = {("" if name.startswith("text_model.") else "text_model.") + name: t for name, t in text.state_dict().items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    torch.save(collections.OrderedDict(weights), f"{folder}/text_encoder/pytorch_model.bin")
    write_json(f"{folder}/scheduler/scheduler_config.json", {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False})
    write_json(f"{folder}/tokenizer/vocab.json", vocab)
    with open(f"{folder}/tokenizer/merges.txt", "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    token = lambda content: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    specials = {"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"),
                "unk_token": token("<|endoftext|>")}
    write_json(f"{folder}/tokenizer/special_tokens_map.json", {**specials, "pad_token": "<|endoftext|>"})
    write_json(f"{folder}/tokenizer/tokenizer_config.json", {
        **specials, "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": LENGTH,
        "name_or_path": "openai/clip-vit-large-patch14", "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"})
    write_json(f"{folder}/model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2",
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]})


if __name__ == "__main__":
    shutil.rmtree(ROOT, ignore_errors=True)
    vocab, merges = vocabulary()
    unet, vae, text = networks(len(vocab))
    scratch = os.path.join(ROOT, "scratch")
    write_json(f"{scratch}/vocab.json", vocab)
    with open(f"{scratch}/merges.txt", "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(vocab=f"{scratch}/vocab.json", merges=f"{scratch}/merges.txt", model_max_length=LENGTH)
    shutil.rmtree(scratch)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    results = expected("now", tokenizer, unet, vae, text)
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(f"{ROOT}/now")
    write_old(f"{ROOT}/old", vocab, merges, unet, vae, text)
    results |= expected("old", tokenizer, unet, vae.half().float(), text)
    save_file(results, f"{ROOT}/expected.safetensors")
    with open(f"{ROOT}/prompts.json", "w") as file:
        json.dump(PROMPTS, file, indent=1)
