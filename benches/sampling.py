"""Sampling at the size of Stable Diffusion 1.5 by three programs on the same random weights: datum, diffusers (eager) and
stable-diffusion.cpp (through the package cyllama, which bundles it). Prints a row of docs/performance.md for each.

    python benches/sampling.py DATUM [SIDE] [ROUNDS]

DATUM   the program                       SIDE   of the pictures, pixels (256)       ROUNDS   of all three in turn (3)

One picture, Euler, no guidance, f32, two threads. A program's time per step is the difference between a run of MANY and one of FEW steps,
each in a process of its own, divided by the steps between, so that loading, text encoder and decoder fall out; its memory is the
peak of the run. The median over the rounds is printed.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time

FEW, MANY = 2, 8
HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = os.path.join(HERE, "../tests/golden/sd_folder/now")


def save(folder):
    """A diffusers folder with random weights in the sizes of Stable Diffusion 1.5."""
    import shutil

    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768).save_pretrained(f"{folder}/unet")
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4).save_pretrained(f"{folder}/vae")
    CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)).save_pretrained(f"{folder}/text_encoder")
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(f"{folder}/scheduler")
    shutil.copytree(f"{SMALL}/tokenizer", f"{folder}/tokenizer")
    shutil.copy(f"{SMALL}/model_index.json", folder)


def published_names():
    """Beginnings of a U-Net's names in diffusers and in the published checkpoints, which stable-diffusion.cpp reads."""
    names = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
             "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.attentions.0": "middle_block.1",
             "mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for level in range(4):
        for block in range(3):
            if block < 2:
                names[f"down_blocks.{level}.resnets.{block}"] = f"input_blocks.{3 * level + block + 1}.0"
                names[f"down_blocks.{level}.attentions.{block}"] = f"input_blocks.{3 * level + block + 1}.1"
            names[f"up_blocks.{level}.resnets.{block}"] = f"output_blocks.{3 * level + block}.0"
            names[f"up_blocks.{level}.attentions.{block}"] = f"output_blocks.{3 * level + block}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 * level + 3}.0.op"
        names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}"
    return names


INNER = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
         "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}


def publish(folder):
    """U-Net and text encoder once more, in one file and under the names of the published checkpoints."""
    from safetensors.torch import load_file, save_file

    starts, renamed = published_names(), {}
    for name, tensor in load_file(f"{folder}/unet/diffusion_pytorch_model.safetensors").items():
        start = next(start for start in starts if name.startswith(start + "."))
        rest = name[len(start) + 1 :]
        if ".resnets." in name:
            part, kind = rest.rsplit(".", 1)
            rest = f"{INNER[part]}.{kind}"
        renamed[f"model.diffusion_model.{starts[start]}.{rest}"] = tensor
    for name, tensor in load_file(f"{folder}/text_encoder/model.safetensors").items():
        renamed["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    save_file(renamed, f"{folder}/published.safetensors")


def sample_diffusers(folder, side, steps):
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(f"{folder}/unet")
    vae = AutoencoderKL.from_pretrained(f"{folder}/vae")
    scheduler = EulerDiscreteScheduler.from_pretrained(f"{folder}/scheduler")
    scheduler.set_timesteps(steps)
    context = torch.randn(1, 77, 768)
    latents = torch.randn(1, 4, side // 8, side // 8) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = unet(scheduler.scale_model_input(latents, t), t, context).sample
            latents = scheduler.step(noise, t, latents).prev_sample
        vae.decode(latents / vae.config.scaling_factor)


def sample_cpp(folder, side, steps):
    from cyllama import sd

    parameters = sd.SDContextParams(
        model_path=f"{folder}/published.safetensors", vae_path=f"{folder}/vae/diffusion_pytorch_model.safetensors",
        n_threads=2, wtype=sd.SDType.F32)
    context = sd.SDContext(parameters)
    context.generate(
        prompt="a photo of a street", width=side, height=side, seed=0, sample_steps=steps, cfg_scale=1.0,
        sample_method=sd.SampleMethod.EULER)


def run(program, folder, side, steps, datum):
    """Seconds and peak MiB of one process."""
    if program == "datum":
        command = [datum, "generate", "--model", folder, "--prompts", f"{folder}/prompts.txt", "--output", tempfile.mkdtemp(dir=folder),
                   "--count", "1", "--steps", str(steps), "--guidance-scale", "1", "--scheduler", "euler", "--width", str(side),
                   "--height", str(side), "--threads", "2", "--quiet"]
    else:
        command = [sys.executable, os.path.abspath(__file__), "--only", program, folder, str(side), str(steps)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{program} failed:\n{errors.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main(datum, side=256, rounds=3):
    programs = ["datum", "diffusers", "cpp"]
    times, peaks = {name: [] for name in programs}, {}
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: programs would inherit this one's peak of memory.
        subprocess.run([sys.executable, os.path.abspath(__file__), "--only", "save", folder], check=True)
        with open(f"{folder}/prompts.txt", "w") as file:
            file.write("a photo of a street\n")
        for _ in range(rounds):
            for name in programs:
                (few, _), (many, peak) = (run(name, folder, side, steps, datum) for steps in (FEW, MANY))
                times[name].append((many - few) / (MANY - FEW))
                peaks[name] = max(peak, peaks.get(name, 0))
    ours = statistics.median(times["datum"])
    print(f"| SD 1.5 sampling, {side}x{side} | s/step | ours / theirs | peak MiB |\n|---|---|---|---|")
    for name, title in zip(programs, ["datum", "diffusers, eager", "stable-diffusion.cpp"]):
        step = statistics.median(times[name])
        print(f"| {title} | {step:.2f} | {ours / step:.2f} | {peaks[name]:.0f} |")


if __name__ == "__main__":
    if sys.argv[1:3] == ["--only", "save"]:
        save(sys.argv[3])
        publish(sys.argv[3])
    elif sys.argv[1:2] == ["--only"]:
        program, folder, side, steps = sys.argv[2:]
        (sample_cpp if program == "cpp" else sample_diffusers)(folder, int(side), int(steps))
    elif len(sys.argv) > 1:
        main(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        sys.exit(__doc__)
