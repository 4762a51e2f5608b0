"""Compares our Stable Diffusion networks with diffusers and transformers, on a folder of random weights.

    cargo build --example stable_diffusion_forward
    python scripts/parity_sd15.py --size sd15 [--vocab bpe_simple_vocab_16e6.txt.gz] [--folder KEEP]
    python scripts/parity_sd15.py --load FOLDER

The folder has the official layout and, with `--size sd15`, the sizes of SD 1.4/1.5 (982 million parameters: 4 GB of disk,
10 GB with the copy, and 6 GB of memory); `sd21` has those of SD 2.1, `tiny` takes seconds. Latents are 32x32. Both sides get
equal inputs; every output must agree within 1e-4 of its largest value, token ids exactly. Then our copy of the folder
is opened with `StableDiffusionPipeline.from_pretrained`: every tensor must be equal, and for `tiny` the pictures too.

`--vocab` takes CLIP's merges as the package open_clip_torch ships them, and checks the token ids of known prompts; without it
the vocabulary holds bytes only. `--load` only opens a folder and samples two steps, to try other releases of diffusers.
"""

import argparse
import gc
import gzip
import json
import os
import subprocess
import tempfile
import time

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPTS = [
    "a photo of a sks urban scene", "", "a photo of a sks scene from a car", "a photo of an urban scene",
    *(f"a photo of sks {name}" for name in (
        "traffic lights", "traffic signs", "persons", "riders", "cars", "trucks", "trains", "buses", "motorcycles", "bicycles")),
    "  A PHOTO, of\tStra\u00dfe 42 -- it's  raining!!", "\u6771\u4eac cafe\u0301", "word " * 100,
]
SKS = [320, 1125, 539, 48136]
KNOWN_IDS = [
    [320, 1125, 539, 320, 48136, 5800, 3562], [], [320, 1125, 539, 320, 48136, 3562, 633, 320, 1615],
    [320, 1125, 539, 550, 5800, 3562], SKS + [3399, 3073], SKS + [3399, 4659], SKS + [14592], SKS + [10826], SKS + [3346],
    SKS + [9569], SKS + [9541], SKS + [12879], SKS + [24869], SKS + [31326],
]
TOLERANCE = 1e-4


def vocabulary(path):
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    merges = []
    if path:
        lines = gzip.open(path).read().decode().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def networks(size, vocab_size):
    tiny = size == "tiny"
    unet, vae, text = {}, {}, {}
    if tiny:
        unet = dict(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, sample_size=32,
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
        vae = dict(block_out_channels=(32, 32, 32, 32), norm_num_groups=8)
        text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    elif size == "sd15":
        text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    else:
        unet = dict(attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
        text = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(**{"sample_size": 64, "cross_attention_dim": text["hidden_size"], **unet}),
        AutoencoderKL(**{
            "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, **vae}),
        CLIPTextModel(CLIPTextConfig(
            vocab_size=vocab_size, bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1, **text)),
    )


def write_folder(folder, size, vocab_path):
    vocab, merges = vocabulary(vocab_path)
    with tempfile.TemporaryDirectory() as scratch:
        with open(f"{scratch}/vocab.json", "w") as file:
            json.dump(vocab, file)
        with open(f"{scratch}/merges.txt", "w") as file:
            file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        tokenizer = CLIPTokenizer(vocab=f"{scratch}/vocab.json", merges=f"{scratch}/merges.txt", model_max_length=77)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        prediction_type="v_prediction" if size == "sd21" else "epsilon")
    unet, vae, text = networks(size, len(vocab))
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)


def timed(name, run):
    start = time.time()
    result = run()
    print(f"{name}: {time.time() - start:.2f} s")
    return result


def python_outputs(folder, inputs):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        parameters = list(getattr(pipeline, part).parameters())
        print(f"{part}: {len(parameters)} tensors, {sum(p.numel() for p in parameters)} parameters")
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    batch = inputs["latents"].shape[0]
    with torch.no_grad():
        context = timed("text_encoder", lambda: pipeline.text_encoder(ids[:batch]).last_hidden_state)
        noise = timed("unet", lambda: pipeline.unet(inputs["latents"], inputs["timesteps"].long(), context).sample)
        moments = timed("vae encoder", lambda: pipeline.vae.encode(inputs["images"]).latent_dist)
        decoded = timed("vae decoder", lambda: pipeline.vae.decode(inputs["latents"]).sample)
    return {"ids": ids, "context": context, "noise": noise, "mean": moments.mean, "logvar": moments.logvar, "decoded": decoded}


def compare(expected, found, known_ids):
    good = torch.equal(expected["ids"].long(), found["ids"].long())
    print(f"token ids of {len(PROMPTS)} prompts: {'equal' if good else 'DIFFERENT'}")
    if known_ids:
        rows = [[49406, *ids, 49407] + [49407] * (75 - len(ids)) for ids in KNOWN_IDS]
        known = torch.equal(found["ids"][: len(rows)].long(), torch.tensor(rows))
        print(f"known token ids of {len(rows)} prompts: {'equal' if known else 'DIFFERENT'}")
        good &= known
    for name in ("context", "noise", "mean", "logvar", "decoded"):
        error, largest = (expected[name] - found[name]).abs().max().item(), expected[name].abs().max().item()
        within = error <= TOLERANCE * largest
        good &= within
        print(f"{name} {list(found[name].shape)}: max error {error:.3e}, max value {largest:.3e}, ratio {error / largest:.1e}"
              f" {'ok' if within else 'TOO LARGE'}")
    return good


def sample(pipeline):
    latents = torch.randn(1, pipeline.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    pipeline.set_progress_bar_config(disable=True)
    return torch.tensor(pipeline("a photo of sks cars", num_inference_steps=2, latents=latents, output_type="np").images)


def compare_copy(folder, copy, size):
    first = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    second = StableDiffusionPipeline.from_pretrained(copy)
    good = True
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        equal = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        print(f"our copy in Python, {part}: {len(b)} tensors {'equal' if equal else 'DIFFERENT'}")
        good &= equal
    if size == "tiny":
        equal = torch.equal(sample(first), sample(second))
        print(f"our copy in Python, sampled picture: {'equal' if equal else 'DIFFERENT'}")
        good &= equal
    return good


def main():
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "sd15", "sd21"], default="tiny")
    parser.add_argument("--vocab")
    parser.add_argument("--folder", help="work here and keep the files, instead of in a temporary folder")
    parser.add_argument("--example", default="target/debug/examples/stable_diffusion_forward")
    parser.add_argument("--load", help="only open this folder and sample")
    options = parser.parse_args()
    if options.load:
        import diffusers, transformers

        picture = sample(StableDiffusionPipeline.from_pretrained(options.load))
        print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}: sampled {list(picture.shape)}, "
              f"mean {picture.mean().item():.6f}")
        return
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.folder or temporary
        folder, copy = f"{work}/python", f"{work}/copy"
        write_folder(folder, options.size, options.vocab)
        inputs = {"latents": torch.randn(2, 4, 32, 32), "timesteps": torch.tensor([981.0, 20.0]),
                  "images": torch.rand(1, 3, 256, 256) * 2 - 1}
        save_file(inputs, f"{work}/inputs.safetensors", metadata={"prompts": json.dumps(PROMPTS)})
        print("--- Python")
        expected = python_outputs(folder, inputs)
        gc.collect()
        print("--- ours", flush=True)
        subprocess.run([options.example, folder, f"{work}/inputs.safetensors", f"{work}/outputs.safetensors", copy], check=True)
        print("--- comparison")
        good = compare(expected, load_file(f"{work}/outputs.safetensors"), options.vocab)
        good &= compare_copy(folder, copy, options.size)
    raise SystemExit(0 if good else "results differ")


if __name__ == "__main__":
    main()
