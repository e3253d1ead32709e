"""The published schedule of reference-method sections 1 and 6.1, to compare with; on the same weights as ours.

Written from the method's description: ids one by one over a cache that is copied at every step and a head over the
whole vocabulary, the whole sequence again for its states, the null branch at every step even at guidance 1, tokens
projected at every step; in step 2 the integrator with a live graph and unused logits over the whole vocabulary; in
alignment one condition for every copy of an image and three forwards for every noised sample.
Where the published code and ours would give different results, ours decides, so that outputs can be compared: ids are
chosen greedily among the legal ones (after all were computed), and the queries' span is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from prefrestore.config import AlignConfig
from prefrestore.diffusion.flow import flow_matching_loss, interpolate
from prefrestore.models.adapters import using_role
from prefrestore.models.condition import Condition
from prefrestore.models.integrator import Decoded, text_state, vocabulary_of
from prefrestore.models.pipeline import PrefRestorePipeline
from prefrestore.models.text import Prompt
from prefrestore.rl.nft_loss import deviation, nft_loss
from prefrestore.rl.types import Noised


@torch.no_grad()
def decode_ids(pipeline: PrefRestorePipeline, prompt: Prompt) -> Tensor:
    """Return code ids [B, n], decoded with a dynamic cache and the whole head (6.1, C2)."""
    integrator = pipeline.integrator
    first = vocabulary_of(integrator).first_code
    cache = DynamicCache(config=integrator.config)
    inputs, mask, ids = prompt.ids, prompt.mask, []
    for _ in range(pipeline.image_tokenizer.num_tokens):
        output = integrator(
            input_ids=inputs, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits = output.logits[:, -1]
        logits[:, :first] = -torch.inf
        inputs = logits.argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(inputs)], 1)
        ids.append(inputs - first)
    return torch.cat(ids, 1)


@torch.no_grad()
def second_pass(pipeline: PrefRestorePipeline, prompt: Prompt, ids: Tensor) -> Decoded:
    """Return the queries [B, n + 1, D] of decoded ids by another pass over the whole sequence (1.5)."""
    whole = torch.cat([prompt.ids, ids + vocabulary_of(pipeline.integrator).first_code], 1)
    states = pipeline.integrator.model(input_ids=whole, use_cache=False).last_hidden_state
    return Decoded(ids, states[:, -ids.shape[1] - 1 :], text_state(pipeline.integrator, prompt, states))


@torch.no_grad()
def condition_of(pipeline: PrefRestorePipeline, lq: Tensor, texts: Sequence[str]) -> tuple[Decoded, Tensor]:
    """Return what the integrator says of LQ images [B, 3, H, W] of equally long prompts, and condition tokens."""
    prompt = pipeline.prompts(pipeline.image_tokenizer.ids(lq), texts)
    decoded = second_pass(pipeline, prompt, decode_ids(pipeline, prompt))
    spatial = pipeline.lq_encoder(lq)
    return decoded, pipeline.connectors(decoded.queries, pipeline.generator.lq_tokens(spatial))


@torch.no_grad()
def sample(
    pipeline: PrefRestorePipeline, condition: Condition, noise: Tensor, num_steps: int, guidance: float
) -> Tensor:
    """Return latents by Euler steps from sigma 1 to 0 on the doubled batch [null; condition] (section 5)."""
    both = torch.cat([torch.zeros_like(condition.tokens), condition.tokens])
    spatial = torch.cat([condition.spatial, condition.spatial])
    x_t = noise
    for step in range(num_steps):
        sigma = torch.full((2 * len(noise),), 1 - step / num_steps)
        null, given = pipeline.generator(torch.cat([x_t, x_t]), sigma, both, spatial).chunk(2)
        x_t = x_t - (null + guidance * (given - null)) / num_steps
    return x_t


@dataclass(frozen=True)
class Step2Batch:
    """What step 2 learns from: images [B, 3, H, W] of both sides, noise [B, C, h, w], its level [B], one text each."""

    lq: Tensor
    hq: Tensor
    noise: Tensor
    sigma: Tensor
    texts: Sequence[str]


def step2_loss(pipeline: PrefRestorePipeline, batch: Step2Batch) -> Tensor:
    """Return step 2's loss with nothing cached (6.1, C7 and C8): HQ is encoded anew and the integrator has a graph.

    The integrator's layers are checkpointed: they run again, and backwards, for parameters that are all frozen.
    """
    integrator = pipeline.integrator
    with torch.no_grad():
        latents = pipeline.encode(batch.hq)
        hq_ids = pipeline.image_tokenizer.ids(batch.hq)
        prompt = pipeline.prompts(pipeline.image_tokenizer.ids(batch.lq), batch.texts)
    whole = torch.cat([prompt.ids, hq_ids + vocabulary_of(integrator).first_code], 1)
    embedded = integrator.model.embed_tokens(whole).detach().requires_grad_()
    integrator.train()
    integrator.activation_checkpointing_enable()
    output = integrator(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
    queries = output.hidden_states[-1][:, -hq_ids.shape[1] - 1 :]
    spatial = pipeline.lq_encoder(batch.lq)
    tokens = pipeline.connectors(queries, pipeline.generator.lq_tokens(spatial))
    x_t = interpolate(latents, batch.noise, batch.sigma)
    velocity = pipeline.generator(x_t, batch.sigma, tokens, spatial)
    integrator.activation_checkpointing_disable()
    integrator.eval()
    return flow_matching_loss(velocity, latents, batch.noise) + (spatial - latents).square().mean()


def nft_level(
    pipeline: PrefRestorePipeline, condition: Condition, sample: Noised, optimality: Tensor, config: AlignConfig
) -> Tensor:
    """Return the mean loss of B noised samples with a condition each: old, policy and ref run (4.5; C4 and C6)."""

    def velocity() -> Tensor:
        return pipeline.generator(sample.x_t, sample.sigma, condition.tokens, condition.spatial)

    with torch.no_grad(), using_role(pipeline, "old"):
        old = velocity()
    with torch.no_grad(), using_role(pipeline, "ref"):
        ref = velocity()
    policy = velocity()
    loss = config.advantage_clip * nft_loss(policy, old, sample, optimality, config.nft_beta)
    return (loss + config.kl_weight * deviation(policy, ref)).mean()
