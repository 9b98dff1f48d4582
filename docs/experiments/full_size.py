"""FLUX.2 klein 4B and Z-Image with Qwen3-4B, of full size with random weights: the files, and diffusers on nets as large.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.24.0 safetensors==0.8.0 gguf==0.19.0
    python docs/experiments/full_size.py files klein|z-image FOLDER
    python docs/experiments/full_size.py diffusers klein|z-image TOKENIZER THREADS STEPS

full_size.sh does both and measures each program. Names and shapes are those of the published files; GGUF keeps what those files keep
in wider numbers.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16


class Shapes(dict):
    """Names of tensors to shapes; those of one axis are gains."""

    def linear(self, name, outputs, inputs, bias=False):
        self[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norms(self, size, *names):
        self.update((name, (size,)) for name in names)


def klein():
    hidden, inner, head, text = 3072, 9216, 128, 7680
    found = Shapes()
    for name, outputs, inputs in [
        ("img_in", hidden, 128),
        ("txt_in", hidden, text),
        ("time_in.in_layer", hidden, 256),
        ("time_in.out_layer", hidden, hidden),
        ("double_stream_modulation_img.lin", 6 * hidden, hidden),
        ("double_stream_modulation_txt.lin", 6 * hidden, hidden),
        ("single_stream_modulation.lin", 3 * hidden, hidden),
        ("final_layer.adaLN_modulation.1", 2 * hidden, hidden),
        ("final_layer.linear", 128, hidden),
    ]:
        found.linear(name, outputs, inputs)
    for block in range(5):
        for stream in ("img", "txt"):
            start = f"double_blocks.{block}.{stream}"
            found.linear(f"{start}_attn.qkv", 3 * hidden, hidden)
            found.linear(f"{start}_attn.proj", hidden, hidden)
            found.linear(f"{start}_mlp.0", 2 * inner, hidden)
            found.linear(f"{start}_mlp.2", hidden, inner)
            found.norms(head, f"{start}_attn.norm.query_norm.scale", f"{start}_attn.norm.key_norm.scale")
    for block in range(20):
        start = f"single_blocks.{block}"
        found.linear(f"{start}.linear1", 3 * hidden + 2 * inner, hidden)
        found.linear(f"{start}.linear2", hidden, hidden + inner)
        found.norms(head, f"{start}.norm.query_norm.scale", f"{start}.norm.key_norm.scale")
    return found


def z_image():
    hidden, inner, head, text, code = 3840, 10240, 128, 2560, 256
    found = Shapes(cap_pad_token=(1, hidden), x_pad_token=(1, hidden))
    found.norms(text, "cap_embedder.0.weight")
    for name, outputs, inputs in [
        ("cap_embedder.1", hidden, text),
        ("x_embedder", hidden, 64),
        ("t_embedder.mlp.0", 1024, code),
        ("t_embedder.mlp.2", code, 1024),
        ("final_layer.adaLN_modulation.1", hidden, code),
        ("final_layer.linear", 64, hidden),
    ]:
        found.linear(name, outputs, inputs, bias=True)
    for part, blocks in [("context_refiner", 2), ("noise_refiner", 2), ("layers", 30)]:
        for block in range(blocks):
            start = f"{part}.{block}"
            if part != "context_refiner":
                found.linear(f"{start}.adaLN_modulation.0", 4 * hidden, code, bias=True)
            found.linear(f"{start}.attention.qkv", 3 * hidden, hidden)
            found.linear(f"{start}.attention.out", hidden, hidden)
            for name, outputs, inputs in [("w1", inner, hidden), ("w2", hidden, inner), ("w3", inner, hidden)]:
                found.linear(f"{start}.feed_forward.{name}", outputs, inputs)
            found.norms(head, *(f"{start}.attention.{name}_norm.weight" for name in "qk"))
            found.norms(hidden, *(f"{start}.{name}_norm{i}.weight" for name in ("attention", "ffn") for i in (1, 2)))
    return found


def qwen3(names):
    """With the names of a layer's parts as transformers or as llama.cpp has them."""
    hidden, inner, head, heads, key_heads = 2560, 9728, 128, 32, 8
    embedding, layers, last, q, k, v, out, q_norm, k_norm, before, behind, gate, up, down = names.split()
    found = Shapes({f"{embedding}.weight": (151936, hidden)})
    for layer in range(36):
        start = f"{layers}.{layer}."
        for name, outputs, inputs in [
            (q, heads * head, hidden),
            (k, key_heads * head, hidden),
            (v, key_heads * head, hidden),
            (out, hidden, heads * head),
            (gate, inner, hidden),
            (up, inner, hidden),
            (down, hidden, inner),
        ]:
            found.linear(start + name, outputs, inputs)
        found.norms(head, f"{start}{q_norm}.weight", f"{start}{k_norm}.weight")
        found.norms(hidden, f"{start}{before}.weight", f"{start}{behind}.weight")
    found.norms(hidden, f"{last}.weight")
    return found


TRANSFORMERS = (
    "model.embed_tokens model.layers model.norm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
    "self_attn.q_norm self_attn.k_norm input_layernorm post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj"
)
LLAMA_CPP = (
    "token_embd blk output_norm attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm attn_norm ffn_norm ffn_gate ffn_up ffn_down"
)


NOISE = np.random.default_rng(0).standard_normal(1 << 24, np.float32)


def drawn(shape):
    """Weights with a deviation of inputs ** -0.5, as a net begins, of the same noise from anywhere on; gains of 1."""
    if len(shape) == 1:
        return torch.ones(shape)
    noise = np.resize(np.roll(NOISE, np.random.randint(len(NOISE))), shape)
    return torch.from_numpy(noise * np.float32(shape[-1] ** -0.5))


def safetensors(path, shapes, narrow):
    """Matrices of blocks in a type, the rest in bf16."""
    from safetensors.torch import save_file

    def is_narrow(name, shape):
        return len(shape) == 2 and any(part.isdigit() for part in name.split(".")[:-2]) and "embed" not in name

    save_file({name: drawn(shape).to(narrow if is_narrow(name, shape) else BF16) for name, shape in shapes.items()}, path)


def gguf(path, shapes, architecture, kind):
    """Matrices of blocks in a kind of GGUF's blocks, the rest in f16, gains in f32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    kind = GGMLQuantizationType[kind]
    length, width = GGML_QUANT_SIZES[kind]
    writer = GGUFWriter(path, architecture)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        elif shape[1] % length or shape[1] <= 256 or shape[0] <= 128:
            writer.add_tensor(name, drawn(shape).numpy().astype(np.float16))
        else:
            blocks = np.random.randint(0, 256, (shape[0] * shape[1] // length, width), np.uint8)
            # A block's number, or two, ahead of it: what leaves weights with a mean of about 0 and a deviation of inputs ** -0.5.
            scales = {"Q8_0": [1 / 74], "Q4_K": [1 / 300, 7.5 / 300]}[kind.name]
            scales = np.array(scales) * shape[1] ** -0.5
            blocks[:, : 2 * len(scales)] = scales.astype(np.float16).view(np.uint8)
            writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def autoencoder(kind):
    from diffusers import AutoencoderKL, AutoencoderKLFlux2

    if kind == "klein":
        return AutoencoderKLFlux2()
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def files(kind, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    autoencoder(kind).to(BF16).save_pretrained(folder / "vae")
    if kind == "klein":
        safetensors(folder / "model.safetensors", klein(), BF16)
        safetensors(folder / "qwen3-4b.safetensors", qwen3(TRANSFORMERS), BF16)
        gguf(folder / "model-Q8_0.gguf", klein(), "flux", "Q8_0")
        gguf(folder / "model-Q4_K.gguf", klein(), "flux", "Q4_K")
        gguf(folder / "qwen3-4b-Q8_0.gguf", qwen3(LLAMA_CPP), "qwen3", "Q8_0")
    else:
        safetensors(folder / "model-fp8.safetensors", z_image(), FP8)
        safetensors(folder / "qwen3-4b-fp8.safetensors", qwen3(TRANSFORMERS), FP8)


def filled(make):
    """A net in bf16 that is made without its weights first."""
    with torch.device("meta"):
        net = make()
    net = net.to(BF16).to_empty(device="cpu")
    for parameter in net.parameters():
        parameter.data.copy_(drawn(tuple(parameter.shape)).to(BF16))
    return net.eval()


def diffusers(kind, tokenizer, threads, steps):
    """The pipeline, all parts in memory, in bf16."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    torch.set_num_threads(int(threads))
    config = Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, rope_theta=1e6, tie_word_embeddings=True,
    )  # fmt: skip
    # Its angles are buffers, so it is not made without weights first.
    torch.set_default_dtype(BF16)
    encoder = (Qwen3ForCausalLM if kind == "klein" else Qwen3Model)(config).eval()
    torch.set_default_dtype(torch.float32)
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": autoencoder(kind).to(BF16).eval(),
        "text_encoder": encoder,
        "tokenizer": AutoTokenizer.from_pretrained(tokenizer),
    }
    if kind == "klein":
        net = filled(lambda: Flux2Transformer2DModel(
            in_channels=128, num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
            guidance_embeds=False,
        ))  # fmt: skip
        pipe = Flux2KleinPipeline(transformer=net, is_distilled=True, **parts)
    else:
        net = filled(ZImageTransformer2DModel)
        pipe = ZImagePipeline(transformer=net, **parts)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e9:.2f} G weights in the transformer", flush=True)
    begun, marks = time.time(), []
    for part in (encoder, net):
        part.register_forward_hook(lambda *_: marks.append(time.time()))
    pipe(prompt=sys.stdin.read().strip(), height=512, width=512, num_inference_steps=int(steps), guidance_scale=1.0 if kind == "klein" else 0.0)
    ends = [begun, *marks, time.time()]
    for name, start, end in zip(["text encoder", *["step"] * int(steps), "decoder"], ends, ends[1:]):
        print(f"{name} {end - start:.1f} s")
    print(f"all {time.time() - begun:.1f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    what, kind, *rest = sys.argv[1:]
    if kind not in ("klein", "z-image"):
        sys.exit(__doc__)
    torch.manual_seed(0)
    np.random.seed(0)
    with torch.no_grad():
        {"files": files, "diffusers": diffusers}[what](kind, *rest)
