"""The published model written out from its description, for comparison: plain torch, its own names, no code of ours.

``random_checkpoint`` makes small weights of the published layout, ``Published`` computes with them. Only DC-AE is the
library's class.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "\nPlease reconstruct the given image.<|im_end|>\n<|im_start|>assistant\n",
)
CODES, CODE_DIM, GRID = 50, 10, 4
SIDE, PATCH, VIT, VIT_HEADS, VIT_FFN, VIT_LAYERS = 30, 7, 24, 2, 40, 3
D, LAYERS, HEADS, KV, HEAD, FFN = 32, 2, 4, 2, 8, 48
DIT, DIT_LAYERS, DIT_HEADS, CROSS, CAPTION = 24, 2, 3, 2, 28
CHANNELS, WIDTHS, DEPTHS = 8, (16, 32, 32, 32), (1, 1, 1, 1)
THETA = 1e6


def text_tokenizer(num_codes: int) -> tuple[Tokenizer, int]:
    """Return a byte-pair tokenizer built as Qwen's, with the published tags behind it, and its size without them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = " ".join(TEMPLATE)
    for special in SPECIAL:
        words = words.replace(special, "\n")
    tokenizer.train_from_iterator([words] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    size = tokenizer.get_vocab_size()
    tags = ["<im_start>", "<im_end>", "<S0>", "<S1>", "<S2>", *(f"<I{code}>" for code in range(num_codes)), "<image>"]
    tokenizer.add_tokens([AddedToken(tag) for tag in tags])
    return tokenizer, size


def codec() -> AutoencoderDC:
    """Return an untrained DC-AE of the published structure at a small size."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock")
    return AutoencoderDC(
        latent_channels=CHANNELS,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        encoder_layers_per_block=DEPTHS,
        decoder_layers_per_block=(3, 3, 3, 3),
        encoder_qkv_multiscales=((), (), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    ).eval()


def linear(name: str, out_size: int, in_size: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_size, in_size)} | ({f"{name}.bias": (out_size,)} if bias else {})


def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def ta_tok_shapes(sizes: tuple[int, ...] = (VIT, VIT_FFN, VIT_LAYERS, PATCH, GRID, CODES, CODE_DIM)) -> dict:
    """Return names and shapes of TA-Tok's weights."""
    width, ffn, layers, patch, grid, codes, code_dim = sizes
    shapes = {
        "encoder.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "encoder.embeddings.patch_embedding.bias": (width,),
        "encoder.embeddings.position_embedding.weight": (grid * grid, width),
    }
    for block in range(layers):
        at = f"encoder.encoder.layers.{block}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}.self_attn.{name}", width, width)
        shapes |= linear(f"{at}.mlp.fc1", ffn, width) | linear(f"{at}.mlp.fc2", width, ffn)
        shapes |= norm(f"{at}.layer_norm1", width) | norm(f"{at}.layer_norm2", width)
    shapes |= norm("encoder.post_layernorm", width)
    shapes |= {"encoder.head.probe": (1, 1, width)} | linear("encoder.head.mlp.fc1", ffn, width)
    shapes |= linear("encode_task_layer.0", width, width) | linear("bottleneck.in_linear", code_dim, width)
    shapes |= linear("bottleneck.out_linear", width, code_dim) | linear("decoder.patch_embedding", width, width)
    shapes |= linear("decode_task_layer.0", width, width) | {"scale_layer.shift": (1, 3, 1, 1)}
    shapes |= {"bottleneck.regularizer.embedding.weight": (codes, code_dim)}
    return shapes | linear("bottleneck.regularizer.embedding_proj", code_dim, code_dim)


def qwen_shapes(vocabulary: int, sizes: tuple[int, ...] = (D, LAYERS, HEADS, KV, HEAD, FFN)) -> dict:
    """Return names and shapes of the language model's weights."""
    size, layers, heads, kv, head, ffn = sizes
    shapes = {"model.embed_tokens.weight": (vocabulary, size), "model.norm.weight": (size,)}
    for block in range(layers):
        at = f"model.layers.{block}"
        shapes |= linear(f"{at}.self_attn.q_proj", heads * head, size, bias=False)
        shapes |= linear(f"{at}.self_attn.k_proj", kv * head, size, bias=False)
        shapes |= linear(f"{at}.self_attn.v_proj", kv * head, size, bias=False)
        shapes |= linear(f"{at}.self_attn.o_proj", size, heads * head, bias=False)
        shapes |= {f"{at}.self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")}
        shapes |= linear(f"{at}.mlp.gate_proj", ffn, size, bias=False) | linear(
            f"{at}.mlp.up_proj", ffn, size, bias=False
        )
        shapes |= linear(f"{at}.mlp.down_proj", size, ffn, bias=False)
        shapes |= {f"{at}.{name}.weight": (size,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def sana_shapes(sizes: tuple[int, ...] = (DIT, DIT_LAYERS, CAPTION, CHANNELS)) -> dict:
    """Return names and shapes of the diffusion transformer's weights."""
    width, layers, caption, channels = sizes
    inner = int(2.5 * width)
    shapes = {"patch_embed.proj.weight": (width, channels, 1, 1), "patch_embed.proj.bias": (width,)}
    shapes |= linear("time_embed.emb.timestep_embedder.linear_1", width, 256)
    shapes |= linear("time_embed.emb.timestep_embedder.linear_2", width, width)
    shapes |= linear("time_embed.linear", 6 * width, width)
    shapes |= linear("caption_projection.linear_1", width, caption) | linear(
        "caption_projection.linear_2", width, width
    )
    shapes |= {"caption_norm.weight": (width,), "scale_shift_table": (2, width)} | linear("proj_out", channels, width)
    for block in range(layers):
        at = f"transformer_blocks.{block}"
        shapes |= {f"{at}.scale_shift_table": (6, width)}
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                shapes |= linear(f"{at}.{attention}.{name}", width, width, bias=attention == "attn2")
            shapes |= linear(f"{at}.{attention}.to_out.0", width, width)
            shapes |= {f"{at}.{attention}.{name}.weight": (width,) for name in ("norm_q", "norm_k")}
        shapes |= {
            f"{at}.ff.conv_inverted.weight": (2 * inner, width, 1, 1),
            f"{at}.ff.conv_inverted.bias": (2 * inner,),
        }
        shapes |= {f"{at}.ff.conv_depth.weight": (2 * inner, 1, 3, 3), f"{at}.ff.conv_depth.bias": (2 * inner,)}
        shapes |= {f"{at}.ff.conv_point.weight": (width, inner, 1, 1)}
    return shapes


def connector_shapes(size: int = D, width: int = DIT, caption: int = CAPTION) -> dict:
    """Return names and shapes of both connectors."""
    shapes = {}
    for name, in_size in (("diffusion_connector", size), ("vae_connector", width)):
        shapes |= linear(f"{name}.0", caption, in_size) | linear(f"{name}.2", caption, caption)
        shapes |= {f"{name}.3.weight": (caption,)}
    return shapes


def prefixed(prefix: str, values: dict) -> dict:
    return {prefix + name: value for name, value in values.items()}


def drawn(shapes: dict, seed: int) -> dict[str, Tensor]:
    """Draw weights that keep the size of what passes through; those of norms lie around 1."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=draw)
        vector = len(shape) == 1 or "table" in name
        is_norm = vector and name.endswith("weight")
        weights[name] = 1 + 0.2 * value if is_norm else value * (0.2 if vector else math.prod(shape[1:]) ** -0.5)
    weights |= {name: value * 4 for name, value in weights.items() if "embed_tokens" in name}
    return weights


def random_checkpoint(text_size: int) -> dict[str, Tensor]:
    """Return small random weights of the published layout, head and clean codec left out."""
    shapes = qwen_shapes(text_size + 5 + CODES)
    shapes |= prefixed("model.vision_tower.vision_tower.", ta_tok_shapes()) | prefixed("model.sana.", sana_shapes())
    torch.manual_seed(5)
    trained = prefixed("model.sana_vae.", {name: value.clone() for name, value in codec().state_dict().items()})
    return drawn(shapes | prefixed("model.", connector_shapes()), 3) | trained


def settings(text_size: int) -> dict:
    """Return what the published ``config.json`` says."""
    return {
        "architectures": ["blip3oQwenForCausalLMVAE"],
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": HEAD,
        "intermediate_size": FFN,
        "rms_norm_eps": 1e-6,
        "rope_theta": THETA,
        "rope_scaling": None,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "image_start_tag_id": text_size,
        "image_end_tag_id": text_size + 1,
        "scale_start_token_id": text_size + 2,
        "scale_end_token_id": text_size + 4,
        "num_scale_tokens": 3,
        "image_start_token_id": text_size + 5,
        "image_end_token_id": text_size + 4 + CODES,
        "num_image_tokens": CODES,
    }


def write_checkpoint(folder: Path, weights: dict[str, Tensor], tokenizer: Tokenizer, config: dict) -> Path:
    """Write a Stage-A folder with two shards and their index."""
    folder.mkdir()
    names = sorted(weights)
    shards = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, members in shards.items():
        save_file({name: weights[name].contiguous() for name in members}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Published:
    """Sections 1.1 to 1.9 of the description, one image at a time."""

    def __init__(self, weights: dict[str, Tensor], text_size: int, tokenizer: Tokenizer) -> None:
        self.w, self.text_size, self.tokenizer = weights, text_size, tokenizer
        self.codec = codec()
        self.codec.load_state_dict(
            {name.removeprefix("model.sana_vae."): value for name, value in weights.items() if "sana_vae" in name}
        )

    def lin(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def ln(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def code_ids(self, pixels: Tensor) -> Tensor:
        """Return code ids [n] of pixels [3, SIDE, SIDE] in [-1, 1]."""
        at = "model.vision_tower.vision_tower."
        patches = F.unfold(pixels[None], PATCH, stride=PATCH)[0].T
        kernel = self.w[at + "encoder.embeddings.patch_embedding.weight"].flatten(1)
        x = patches @ kernel.T + self.w[at + "encoder.embeddings.patch_embedding.bias"]
        x = x + self.w[at + "encoder.embeddings.position_embedding.weight"]
        for block in range(VIT_LAYERS - 1):
            layer = f"{at}encoder.encoder.layers.{block}"
            h = self.ln(f"{layer}.layer_norm1", x)
            q, k, v = (
                self.lin(f"{layer}.self_attn.{name}", h).unflatten(-1, (VIT_HEADS, -1)).movedim(1, 0)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            x = x + self.lin(f"{layer}.self_attn.out_proj", (scores @ v).movedim(0, 1).flatten(1))
            h = F.gelu(self.lin(f"{layer}.mlp.fc1", self.ln(f"{layer}.layer_norm2", x)), approximate="tanh")
            x = x + self.lin(f"{layer}.mlp.fc2", h)
        z = F.normalize(
            self.lin(at + "bottleneck.in_linear", torch.tanh(self.lin(at + "encode_task_layer.0", x))), dim=-1
        )
        codebook = self.lin(
            at + "bottleneck.regularizer.embedding_proj", self.w[at + "bottleneck.regularizer.embedding.weight"]
        )
        return (z @ F.normalize(codebook, dim=-1).T).argmax(-1)

    def prompt(self, codes: Tensor) -> list[int]:
        before, after = (self.tokenizer.encode(part).ids for part in TEMPLATE)
        opened = self.tokenizer.encode("<im_start><S0>").ids
        return [*before, *(codes + self.text_size + 5).tolist(), *after, *opened]

    def states(self, ids: list[int]) -> Tensor:
        """Return the final, normed states [L, D] of a sequence of ids."""
        x = self.w["model.embed_tokens.weight"][ids]
        length = len(ids)
        frequency = THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD)
        angle = torch.outer(torch.arange(length).float(), frequency)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        future = torch.ones(length, length, dtype=torch.bool).triu(1)

        def rotated(t: Tensor) -> Tensor:
            first, second = t.chunk(2, -1)
            return t * cos + torch.cat([-second, first], -1) * sin

        for block in range(LAYERS):
            at = f"model.layers.{block}"
            h = rms(x, self.w[f"{at}.input_layernorm.weight"], 1e-6)
            q = self.lin(f"{at}.self_attn.q_proj", h).unflatten(-1, (HEADS, HEAD))
            k = self.lin(f"{at}.self_attn.k_proj", h).unflatten(-1, (KV, HEAD))
            v = self.lin(f"{at}.self_attn.v_proj", h).unflatten(-1, (KV, HEAD)).movedim(1, 0)
            q = rotated(rms(q, self.w[f"{at}.self_attn.q_norm.weight"], 1e-6).movedim(1, 0))
            k = rotated(rms(k, self.w[f"{at}.self_attn.k_norm.weight"], 1e-6).movedim(1, 0))
            k, v = (t.repeat_interleave(HEADS // KV, 0) for t in (k, v))
            scores = (q @ k.mT / HEAD**0.5).masked_fill(future, -torch.inf).softmax(-1)
            x = x + self.lin(f"{at}.self_attn.o_proj", (scores @ v).movedim(0, 1).flatten(1))
            h = rms(x, self.w[f"{at}.post_attention_layernorm.weight"], 1e-6)
            h = F.silu(self.lin(f"{at}.mlp.gate_proj", h)) * self.lin(f"{at}.mlp.up_proj", h)
            x = x + self.lin(f"{at}.mlp.down_proj", h)
        return rms(x, self.w["model.norm.weight"], 1e-6)

    def queries(self, prompt: list[int]) -> tuple[list[int], Tensor]:
        """Return the codes said greedily (image ids only), and the last n + 1 states of a second, full pass."""
        ids, first = list(prompt), self.text_size + 5
        head = self.w["model.embed_tokens.weight"][first : first + CODES]
        for _ in range(GRID * GRID):
            ids.append(first + int((head @ self.states(ids)[-1]).argmax()))
        return [one - first for one in ids[len(prompt) :]], self.states(ids)[-(GRID * GRID + 1) :]

    def condition(self, queries: Tensor, lq: Tensor) -> Tensor:
        """Return condition tokens [n + 1 + m, CAPTION] from queries and the LQ image [3, H, W] in [-1, 1]."""
        latent = 0.41407 * self.codec.encode(lq[None]).latent
        patch = self.w["model.sana.patch_embed.proj.weight"], self.w["model.sana.patch_embed.proj.bias"]
        tokens = F.conv2d(latent, *patch)[0].flatten(1).T
        shared = self.w["model.diffusion_connector.3.weight"]
        joined = []
        for name, x in (("diffusion_connector", queries), ("vae_connector", tokens)):
            h = self.lin(f"model.{name}.2", F.gelu(self.lin(f"model.{name}.0", x), approximate="tanh"))
            joined.append(rms(h, self.w.get(f"model.{name}.3.weight", shared), 1e-5))
        return torch.cat(joined)

    def velocity(self, x_t: Tensor, sigma: float, condition: Tensor) -> Tensor:
        """Return the velocity [C, h, w]."""
        at, (height, width) = "model.sana.", x_t.shape[1:]
        x = F.conv2d(x_t[None], self.w[at + "patch_embed.proj.weight"], self.w[at + "patch_embed.proj.bias"])
        x = x[0].flatten(1).T
        angle = 1000 * sigma * torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
        time = torch.cat([angle.cos(), angle.sin()])
        time = F.silu(self.lin(at + "time_embed.emb.timestep_embedder.linear_1", time))
        time = self.lin(at + "time_embed.emb.timestep_embedder.linear_2", time)
        modulation = self.lin(at + "time_embed.linear", F.silu(time)).unflatten(0, (6, -1))
        text = F.gelu(self.lin(at + "caption_projection.linear_1", condition), approximate="tanh")
        text = rms(self.lin(at + "caption_projection.linear_2", text), self.w[at + "caption_norm.weight"], 1e-5)
        for block in range(DIT_LAYERS):
            x = self.block(f"{at}transformer_blocks.{block}", x, text, modulation, (height, width))
        shift, scale = self.w[at + "scale_shift_table"] + time
        x = F.layer_norm(x, (DIT,), eps=1e-6) * (1 + scale) + shift
        return self.lin(at + "proj_out", x).T.unflatten(1, (height, width))

    def block(self, at: str, x: Tensor, text: Tensor, modulation: Tensor, grid: tuple[int, int]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.w[f"{at}.scale_shift_table"] + modulation
        h = F.layer_norm(x, (DIT,), eps=1e-6) * (1 + scale1) + shift1
        q, k, v = self.heads(f"{at}.attn1", h, h, DIT_HEADS)
        q, k = q.relu(), k.relu()
        attended = (q @ (k.mT @ v)) / (q @ k.sum(1)[..., None] + 1e-15)
        x = x + gate1 * self.lin(f"{at}.attn1.to_out.0", attended.movedim(0, 1).flatten(1))
        q, k, v = self.heads(f"{at}.attn2", x, text, CROSS)
        attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.lin(f"{at}.attn2.to_out.0", attended.movedim(0, 1).flatten(1))
        h = (F.layer_norm(x, (DIT,), eps=1e-6) * (1 + scale2) + shift2).T.unflatten(1, grid)[None]
        h = F.silu(F.conv2d(h, self.w[f"{at}.ff.conv_inverted.weight"], self.w[f"{at}.ff.conv_inverted.bias"]))
        depth = self.w[f"{at}.ff.conv_depth.weight"]
        h = F.conv2d(h, depth, self.w[f"{at}.ff.conv_depth.bias"], padding=1, groups=len(depth))
        value, gate = h.chunk(2, 1)
        h = F.conv2d(value * F.silu(gate), self.w[f"{at}.ff.conv_point.weight"])
        return x + gate2 * h[0].flatten(1).T

    def heads(self, at: str, x: Tensor, other: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        q = rms(self.lin(f"{at}.to_q", x), self.w[f"{at}.norm_q.weight"], 1e-5)
        k = rms(self.lin(f"{at}.to_k", other), self.w[f"{at}.norm_k.weight"], 1e-5)
        q, k, v = (t.unflatten(-1, (number, -1)).movedim(1, 0) for t in (q, k, self.lin(f"{at}.to_v", other)))
        return q, k, v

    def restore(self, pixels: Tensor, lq: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Return the restored image [3, H, W] in [0, 1] by Euler steps at guidance 1."""
        condition = self.condition(self.queries(self.prompt(self.code_ids(pixels)))[1], lq)
        x = noise
        for index in range(steps):
            x = x - self.velocity(x, 1 - index / steps, condition) / steps
        return (self.codec.decode(x[None] / 0.41407).sample[0] / 2 + 0.5).clamp(0, 1)
