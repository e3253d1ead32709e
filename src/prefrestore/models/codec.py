"""The codec: diffusers' ``AutoencoderDC`` at any size, started from a linear (PCA) solution where its widths allow.

Images are [B, 3, H, W] in [0, 1]; latents are ``scaling_factor * encoder(2 * image - 1)``, [B, C, H / f, W / f].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.nn import functional

from prefrestore.config import TrainCodecConfig
from prefrestore.errors import UserError

CONSTANT = 12.0
"""Value of the constant channel that keeps the decoder's last RMSNorm almost linear at the start."""
RIDGE = 1e-6
"""Of the mean square of the features: keeps unused ones from making the least squares singular."""


def build_codec(config: TrainCodecConfig) -> AutoencoderDC:
    """Return an untrained codec of residual blocks; its spatial factor is ``2 ** (len(widths) - 1)``."""
    stages = len(config.widths)
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        attention_head_dim=16,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        encoder_layers_per_block=config.layers,
        decoder_layers_per_block=config.layers,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        scaling_factor=1.0,
    )


def published_codec(widths: Sequence[int], layers: Sequence[int], latent_channels: int) -> AutoencoderDC:
    """Return an untrained codec built as SANA's DC-AE (reference-method 1.8): attention blocks in the deeper half.

    With widths 128, 256, 512, 512, 1024, 1024, layers 2, 2, 2, 3, 3, 3 and 32 channels it is the published one.
    """
    shallow = len(widths) // 2
    deep = len(widths) - shallow
    blocks = ("ResBlock",) * shallow + ("EfficientViTBlock",) * deep
    multiscales = ((),) * shallow + ((5,),) * deep
    return AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=tuple(widths),
        decoder_block_out_channels=tuple(widths),
        encoder_layers_per_block=tuple(layers),
        decoder_layers_per_block=(3,) * len(widths),
        encoder_qkv_multiscales=multiscales,
        decoder_qkv_multiscales=multiscales,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def load_codec(weights: str, where: str = "train_codec.weights") -> AutoencoderDC:
    """Load a pretrained codec from a folder or, by name, from the hub.

    Raises:
        UserError: there is none of that name within reach.
    """
    try:
        return AutoencoderDC.from_pretrained(weights, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: {weights}: no AutoencoderDC can be loaded ({reason}): check the name") from None


def encode(codec: AutoencoderDC, images: Tensor) -> Tensor:
    """Return the scaled latents of images in [0, 1]."""
    return codec.encode((2 * images - 1).to(codec.dtype)).latent * codec.config.scaling_factor


def decode(codec: AutoencoderDC, latents: Tensor) -> Tensor:
    """Return images in [0, 1], clipped, from scaled latents."""
    return decode_raw(codec, latents).clamp(0, 1)


def decode_raw(codec: AutoencoderDC, latents: Tensor) -> Tensor:
    """As :func:`decode`, not clipped: what training differentiates."""
    return codec.decode((latents / codec.config.scaling_factor).to(codec.dtype)).sample / 2 + 0.5


def can_start_linear(config: TrainCodecConfig) -> bool:
    """Tell whether every stage is wide enough to carry all pixels below it (no layers at full resolution)."""
    wide = all(width >= 3 * 4**stage for stage, width in enumerate(config.widths[1:], start=1))
    return config.layers[0] == 0 and wide and config.widths[1] >= 25 and config.widths[1] % 4 == 0


@torch.no_grad()
def start_linear(codec: AutoencoderDC, images: Tensor) -> None:
    """Set the codec to the PCA code of ``images`` [N, 3, H, W]: a linear encoder and its inverse.

    Components are scaled by the fourth root of their variance: halfway between PCA and a whitened code, so
    that the flow's isotropic noise neither drowns the strong components nor lifts the weakest to full size.
    """
    depth = len(codec.config.encoder_block_out_channels) - 1
    raw = 2 * images - 1
    for _ in range(depth):
        raw = functional.pixel_unshuffle(raw, 2)
    rows = raw.movedim(1, -1).flatten(0, -2).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    order = values.argsort(descending=True)[: codec.config.latent_channels]
    spread = values[order].clamp_min(1e-12).pow(0.25)
    spread = spread * spread.square().mean().sqrt()  # unit mean square over the latent channels
    project = vectors[:, order].T / spread[:, None]
    restore = vectors[:, order] * spread
    _zero_residual_norms(codec)
    _start_encoder(codec, images, (rows - mean) @ project.T)
    _start_decoder(codec, restore.float(), mean.float())


def _zero_residual_norms(codec: AutoencoderDC) -> None:
    """Make every residual block the identity: the last factor of its branch starts at zero."""
    for name, parameter in codec.named_parameters():
        if ".norm." in name and "blocks" in name:
            nn.init.zeros_(parameter)


def _start_encoder(codec: AutoencoderDC, images: Tensor, latents: Tensor) -> None:
    """Carry the pixels through unchanged, then fit the last convolution to ``latents`` [positions, C]."""
    encoder = codec.encoder
    downs = [encoder.conv_in, *(block[-1] for block in list(encoder.down_blocks)[1:-1])]
    for stage, down in enumerate(downs):
        carried = 3 * 4**stage
        centre = down.conv.weight
        centre[:carried].zero_()
        centre[:carried, :carried, 1, 1] = torch.eye(carried)
        down.conv.bias[:carried].zero_()
    hidden = encoder.conv_in(2 * images - 1)
    for block in encoder.down_blocks:
        hidden = block(hidden)
    features = hidden.movedim(1, -1).flatten(0, -2).double()
    shortcut = features.unflatten(1, (-1, encoder.out_shortcut_average_group_size)).mean(2)
    design = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    gram = design.T @ design
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    # Not lstsq: the last bits of its pivoted QR depend on where the tensors lie in memory.
    solution = torch.cholesky_solve(design.T @ (latents - shortcut), torch.linalg.cholesky(gram))
    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:, :, 1, 1] = solution[:-1].T.float()
    encoder.conv_out.bias.copy_(solution[-1].float())


def _start_decoder(codec: AutoencoderDC, restore: Tensor, mean: Tensor) -> None:
    """Undo the code, pass the pixels up, and split them into positive and negative parts for the last ReLU."""
    decoder = codec.decoder
    carried = restore.shape[0]
    decoder.conv_in.weight.zero_()
    decoder.conv_in.bias.zero_()
    decoder.conv_in.weight[:carried, :, 1, 1] = restore
    decoder.conv_in.bias[:carried] = mean
    _cancel_shortcut(decoder.conv_in, decoder.in_shortcut_repeats)
    ups = [block[0] for block in list(decoder.up_blocks)[1:-1]]
    for up in reversed(ups):
        carried //= 4
        up.conv.weight[: 4 * carried].zero_()
        up.conv.bias[: 4 * carried].zero_()
        up.conv.weight[: 4 * carried, : 4 * carried, 1, 1] = torch.eye(4 * carried)
        if up is ups[0]:
            up.conv.weight[4 * carried : 8 * carried].zero_()
            up.conv.weight[4 * carried : 8 * carried, : 4 * carried, 1, 1] = -torch.eye(4 * carried)
            up.conv.bias[4 * carried : 8 * carried].zero_()
            up.conv.weight[8 * carried : 8 * carried + 4].zero_()
            up.conv.bias[8 * carried : 8 * carried + 4] = CONSTANT
        _cancel_shortcut(up.conv, up.repeats)
    channels = decoder.norm_out.weight.shape[0]
    decoder.norm_out.weight.fill_(CONSTANT / channels**0.5)
    decoder.norm_out.bias.zero_()
    last = decoder.conv_out.conv
    last.weight.zero_()
    last.bias.zero_()
    last.weight[:, :carried, 1, 1] = torch.eye(carried)
    last.weight[:, carried : 2 * carried, 1, 1] = -torch.eye(carried)


def _cancel_shortcut(convolution: nn.Conv2d, repeats: int) -> None:
    """Subtract the repeated-channel shortcut that the block adds, so that the convolution alone decides."""
    outputs = torch.arange(convolution.out_channels)
    convolution.weight[outputs, outputs // repeats, 1, 1] -= 1
