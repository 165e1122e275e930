"""The presets do what their names say, for the sizes of Qwen2.5's models."""

import pytest
from transformers import Qwen2Config

from rftkit import RunConfig
from rftkit.estimate import estimate

# hidden, layers, heads, key heads, inner, whether the embedding is the head as well
SIZES = {
    "0.5B": (896, 24, 14, 2, 4864, True),
    "1.5B": (1536, 28, 12, 2, 8960, True),
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
}


@pytest.mark.parametrize(
    ("size", "gb", "preset"),
    [
        ("0.5B", 8, "gpu_8gb"),
        ("1.5B", 8, "gpu_8gb"),
        ("3B", 24, "gpu_24gb"),
        ("7B", 24, "gpu_24gb"),
    ],
)
def test_the_preset_fits_the_models_that_it_is_for(
    tmp_path, size: str, gb: float, preset: str
) -> None:
    hidden, layers, heads, key_heads, inner, tied = SIZES[size]
    Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        vocab_size=151936,
        tie_word_embeddings=tied,
    ).save_pretrained(tmp_path)
    found = estimate(RunConfig(model=str(tmp_path)), vram_gb=gb)
    assert found["presets"][preset]["fits"]
    assert found["largest_preset"] == "gpu_24gb"  # a small model may take it on a small card
    assert not estimate(RunConfig(model=str(tmp_path)), vram_gb=gb / 10)["presets"][preset]["fits"]
