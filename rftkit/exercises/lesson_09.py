"""Lesson 09: your own GPU."""

from __future__ import annotations

from rftkit.estimate import RESERVE_GB, WASTE
from rftkit.exercises import Exercise
from rftkit.toy import FOUR_ROLLOUTS

# Sizes of Qwen2.5-0.5B: layers, query heads, key heads, width of a head, inner width, hidden width.
LAYERS, HEADS, KV_HEADS, HEAD, INNER, HIDDEN = 24, 14, 2, 64, 4864, 896
RANK, CARD_GB = 8, 8.0


def cache_bytes(heads: int = KV_HEADS, both: int = 2, size: int = 2, rows: int = 0) -> int:
    """Keys and values of the four rollouts, in bytes; of `rows` tokens where that is given."""
    tokens = rows or int(FOUR_ROLLOUTS.mask.sum())
    return tokens * both * LAYERS * heads * HEAD * size


EXERCISES = {
    "09.1": Exercise(
        right=cache_bytes,
        because="10 tokens · 2 (a key and a value) · 24 layers · 2 heads · 64 numbers · 2 bytes.",
        mistakes=(
            (
                lambda: cache_bytes(both=1),
                "That is the keys alone; the values are kept as well.",
            ),
            (
                lambda: cache_bytes(heads=HEADS),
                (
                    "You counted the 14 heads of the queries. Keys and values have 2 heads here, "
                    "which the queries share; that is what grouped attention saves."
                ),
            ),
            (
                lambda: cache_bytes(size=4),
                "A number in bf16 takes 2 bytes; 4 is fp32.",
            ),
            (
                lambda: cache_bytes(rows=12),
                "Padding counted: four rows of three. The responses have 2 + 3 + 2 + 3 tokens.",
            ),
        ),
        otherwise="Tokens × 2 (key and value) × layers × key heads × numbers a head × bytes a "
        "number. The four rollouts have 10 tokens.",
    ),
    "09.2": Exercise(
        right=lambda: RANK * (HIDDEN + INNER),
        because="A is 8 × 896 and B is 4864 × 8: the sum of both sides, times the rank.",
        mistakes=(
            (
                lambda: HIDDEN * INNER,
                "That is the matrix itself, which stays frozen.",
            ),
            (
                lambda: RANK * HIDDEN * INNER,
                "The sides add up, they do not multiply: A [8, 896] and B [4864, 8].",
            ),
            (
                lambda: RANK * HIDDEN,
                "That is A alone. B leads from the 8 numbers to the 4864 outputs.",
            ),
        ),
        otherwise="LoRA adds B·A to the matrix: A [rank, inputs], B [outputs, rank]. Count both.",
    ),
    "09.3": Exercise(
        right=lambda: (CARD_GB - RESERVE_GB) * (1 - WASTE),
        because="0.6 GB are reserved for CUDA itself, and a tenth of the rest is lost in gaps.",
        mistakes=(
            (
                lambda: CARD_GB,
                "Tensors do not get all of a card: CUDA's libraries live there, too.",
            ),
            (
                lambda: CARD_GB - RESERVE_GB,
                "Without the tenth that an allocator loses in gaps, you plan too tightly.",
            ),
            (
                lambda: CARD_GB * (1 - WASTE) - RESERVE_GB,
                "Take the reserve off first: only what is left is cut up by the allocator.",
            ),
            (
                lambda: CARD_GB * (1 - WASTE),
                "You left out the 0.6 GB that CUDA takes for itself.",
            ),
        ),
        otherwise="(8 − reserve) · (1 − waste), with a reserve of 0.6 GB and a waste of a tenth.",
    ),
    "09.4": Exercise(
        right=lambda: ["kept", "stripped", "refused"],
        because="a preamble around a sound answer can be cut off; an answer that is no correction "
        "of the response cannot be used at all, and the response stays.",
        mistakes=(
            (
                lambda: ["kept", "refused", "refused"],
                (
                    "The second is a good answer behind a preamble. The preamble is cut off, and "
                    "what is left is the response."
                ),
            ),
            (
                lambda: ["kept", "stripped", "stripped"],
                (
                    "Nothing in the third is a correction: the edit ratio is nearly 1. Learning "
                    "from it would teach the policy to apologise."
                ),
            ),
            (
                lambda: ["refused", "stripped", "refused"],
                (
                    "An unchanged response is the best answer a refiner can give, and the usual "
                    "one. It is kept."
                ),
            ),
            (
                lambda: ["kept", "stripped", "kept"],
                "The third would replace a fine response by an apology. It must not be learned.",
            ),
        ),
        otherwise='A list of three words, each of them "kept", "stripped" or "refused".',
    ),
}
