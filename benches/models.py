"""PyTorch's times for the rows of benches/models.rs: same names, sizes, columns. python benches/models.py [FILTER]

Segmenters come from tests/golden/seg.py, the networks of Stable Diffusion from diffusers, transformers and peft, the others from
timm and segment-anything. DEVICE=cuda computes on a GPU; COMPILE=1 compiles, for the rows of `COMPILED`, the step, or the forward pass
where there is no step; DTYPE=bf16 computes forward passes with weights in bf16 and steps under autocast with weights in f32; two threads.
"""
import os
import resource
import subprocess
import sys

import torch
import torch.nn.functional as F
from timing import timed

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/golden"))
torch.set_num_threads(2)
torch.manual_seed(0)
wanted = sys.argv[1] if len(sys.argv) > 1 else ""
device = os.environ.get("DEVICE", "cpu")
gpu = device != "cpu"
torch.set_default_device(device)
COMPILED = ["SD 1.5 U-Net, 2x64x64 latents", "SD 1.5 U-Net, 16x64x64 latents", "SD 1.5 U-Net + LoRA, 64x64 latents",
            "SD 1.5 U-Net, 64x64 latents", "mit-b5 + daformer 256, 2x512x512"]
compiling = bool(os.environ.get("COMPILE"))
narrow = os.environ.get("DTYPE") == "bf16"
torch.set_default_dtype(torch.bfloat16 if narrow else torch.float32)


def wait():
    if gpu:
        torch.cuda.synchronize()


def peak_mib():
    if not gpu:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True)
    return float(said.stdout.splitlines()[0])


def row(name, build, run, loss=None, lora=False):
    if wanted not in name or compiling and name not in COMPILED:
        return
    model = build()
    if compiling:
        run = torch.compile(run)

    def forward():
        with torch.no_grad():
            run(model)
        wait()

    model.eval()
    times = step_times = (float("nan"),) * 2
    if not (compiling and loss):
        times = timed(forward, 1.5, 2)
    if loss:
        if narrow:
            torch.set_default_dtype(torch.float32)
            model = build()
        if lora:
            from peft import LoraConfig

            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-6, fused=True)

        def step():
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=narrow):
                value = loss(run(model))
            value.backward()
            optimizer.step()
            wait()

        step_times = timed(step, 1.5, 2)
    torch.set_default_dtype(torch.bfloat16 if narrow else torch.float32)
    print(name, *(f"{t:.1f}" for t in (*times, *step_times)), f"{peak_mib():.0f}", sep="\t", flush=True)


def segmenter(name, encoder, width, shape):
    if wanted not in name:
        return
    import seg
    from transformers import SegformerConfig, SegformerModel

    seg.CLASSES = 19

    def build():
        if encoder == "lite0":
            net = seg.Lite0()
        else:
            sizes = dict(b0=dict(), b5=dict(depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512]))[encoder]
            net = seg.MiT(SegformerModel(SegformerConfig(drop_path_rate=0.0, **sizes)))
            net.channels = net.model.config.hidden_sizes
        return torch.nn.Sequential(net, seg.DAFormerHead(net.channels, width)).to(device)

    images = torch.randn(*shape)
    labels = (torch.arange(shape[0] * shape[2] * shape[3]) % 19).reshape(shape[0], *shape[2:])
    row(name, build, lambda net: net(images), lambda out: F.cross_entropy(F.interpolate(out, shape[2:], mode="bilinear"), labels))


def unet(name, batch, sides, tokens, step, **config):
    from diffusers import UNet2DConditionModel

    width = config.get("cross_attention_dim", 768)
    latents, context = torch.randn(batch, 4, *sides), torch.randn(batch, tokens, width)
    when = torch.full((batch,), 500.0)
    build = lambda: UNet2DConditionModel(**{"cross_attention_dim": 768, **config})
    loss = (lambda out: F.mse_loss(out, latents)) if step else None
    row(name, build, lambda net: net(latents, when, context).sample, loss, step == "lora")


def decoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)


def text():
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407))


def convnext():
    import timm

    return timm.create_model("convnext_large", features_only=True)


def sam():
    from segment_anything import build_sam_vit_b

    return build_sam_vit_b().image_encoder


segmenter("lite0 + daformer 64, 2x240x320", "lite0", 64, (2, 3, 240, 320))
segmenter("mit-b0 + daformer 256, 512x512", "b0", 256, (1, 3, 512, 512))
segmenter("mit-b5 + daformer 256, 512x512", "b5", 256, (1, 3, 512, 512))
unet("small U-Net, 40x40 latents", 1, (40, 40), 16, "full", block_out_channels=(64, 128, 192), layers_per_block=1, norm_num_groups=16,
     cross_attention_dim=128, attention_head_dim=4,
     down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
     up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
for batch, sides in [(16, (32, 64)), (32, (16, 32))]:
    unet(f"nano's U-Net, {batch}x{sides[0]}x{sides[1]} latents", batch, sides, 48, "full", block_out_channels=(64, 128, 128),
         norm_num_groups=16, cross_attention_dim=96, attention_head_dim=4,
         down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
         up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
unet("SD 1.5 U-Net, 32x32 latents", 1, (32, 32), 77, "full")
unet("SD 1.5 U-Net + LoRA, 32x32 latents", 1, (32, 32), 77, "lora")
unet("SD 1.5 U-Net, 64x64 latents", 1, (64, 64), 77, "full" if gpu else None)
if gpu:
    segmenter("mit-b5 + daformer 256, 2x512x512", "b5", 256, (2, 3, 512, 512))
    unet("SD 1.5 U-Net + LoRA, 64x64 latents", 1, (64, 64), 77, "lora")
    unet("SD 1.5 U-Net, 2x64x64 latents", 2, (64, 64), 77, None)
    unet("SD 1.5 U-Net, 16x64x64 latents", 16, (64, 64), 77, None)
latents = torch.randn(1, 4, 64, 64)
row("SD 1.5 decoder, 512x512", decoder, lambda net: net.decode(latents).sample)
ids = (torch.arange(77) * 601 % 49408)[None]
row("SD 1.5 text encoder", text, lambda net: net(ids).last_hidden_state, lambda out: out.square().mean())
photo, large = torch.randn(1, 3, 768, 768), torch.randn(1, 3, 1024, 1024)
row("CLIP ConvNeXt-L, 768x768", convnext, lambda net: net(photo)[-1])
row("SAM ViT-B encoder, 1024x1024", sam, lambda net: net(large))
