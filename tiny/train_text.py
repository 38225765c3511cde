"""Train the small Gemma 3 as a language model of the sentences about the small world: ``python -m tiny.train_text``.

Knows sentences and next tokens; not what the transformer makes of the hidden states.
"""

import argparse
from typing import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.gemma import hidden_states
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from tiny.model import TEXT_TOKENS
from tiny.sentences import describe
from tiny.text import EOS, fresh_encoder, store_encoder
from tiny.training import Plan, slope_of, train
from tiny.world import random_scene

TYPOS = 0.05  # of the sentences, so that it knows characters too
GPU = mx.default_device() == mx.gpu


def main() -> None:
    options = _options()
    mx.random.seed(0)
    encoder = fresh_encoder()
    plan = Plan(
        "text",
        options.steps,
        options.minutes,
        learning_rate=2e-3,
        average=0.99,
        say_every=20,
    )

    def loss(step: int) -> mx.array:
        rng = np.random.default_rng([0, step])
        return next_token_loss(encoder, *batch(encoder, rng, options.batch))

    train(
        encoder.model,
        slope_of(encoder.model, loss),
        plan,
        lambda: store_encoder(encoder.model),
    )
    held_out = sentences(np.random.default_rng(1), 256, typos=0, unseen=True)
    nats = next_token_loss(encoder, *tokens(encoder, held_out)).item()
    print(f"text: {nats:.3f} nats a token on sentences about combinations never seen")


def sentences(
    rng: np.random.Generator, count: int, typos: float = TYPOS, unseen: bool = False
) -> list[str]:
    """Sentences about random scenes, a part of them with a mistake in the spelling."""
    texts = [describe(random_scene(rng, unseen), rng) for _ in range(count)]
    return [typo(text, rng) if rng.random() < typos else text for text in texts]


def typo(text: str, rng: np.random.Generator) -> str:
    """``text`` without one of its characters."""
    at = rng.integers(len(text))
    return text[:at] + text[at + 1 :]


def batch(
    encoder: GemmaTextEncoder, rng: np.random.Generator, count: int
) -> tuple[mx.array, mx.array]:
    return tokens(encoder, sentences(rng, count))


def tokens(
    encoder: GemmaTextEncoder, texts: Sequence[str]
) -> tuple[mx.array, mx.array]:
    """Ids and mask (B, T) of the texts, each closed by an end, padded on the left as at inference."""
    ids, mask = encoder.tokenizer.tokenize(texts, TEXT_TOKENS - 1)
    longest = mask.sum(axis=1).max().item()
    ends = mx.full((len(texts), 1), EOS)
    ids = mx.concatenate([ids[:, -longest:], ends], axis=1)
    return ids, mx.concatenate([mask[:, -longest:], mx.ones_like(ends)], axis=1)


def next_token_loss(
    encoder: GemmaTextEncoder, ids: mx.array, mask: mx.array
) -> mx.array:
    """Mean cross-entropy, in nats, of every token but the first given those before it."""
    *_, last = hidden_states(encoder.model, ids[:, :-1], mask[:, :-1])
    logits = encoder.model.model.embed_tokens.as_linear(last)
    each = nn.losses.cross_entropy(logits, ids[:, 1:])
    counted = mask[:, :-1]
    return (each * counted).sum() / counted.sum()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0 if GPU else 4.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256 if GPU else 32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
