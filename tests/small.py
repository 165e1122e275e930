"""Small random models of real architectures, made on the spot with the shipped tokenizer."""

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rftkit.instruct import EXAMPLES, RULES
from rftkit.paths import TINY_MODEL

KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@lru_cache
def model_folder(kind: str = "llama", hidden: int = 64) -> str:
    """A saved two-layer model with the embedded model's tokenizer."""
    return save_model(AutoTokenizer.from_pretrained(TINY_MODEL), kind, hidden)


def save_model(tokenizer: PreTrainedTokenizerFast, kind: str, hidden: int = 64) -> str:
    """A random model's folder; its weights are scaled up so that it has opinions."""
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    folder = Path(mkdtemp(prefix="rftkit-test-"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache
def instruct_folder(kind: str = "qwen2") -> str:
    """An instruct model made up on the spot: byte-level BPE, Qwen's special tokens and template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [
        RULES,
        *(text for example in EXAMPLES for text in example),
        *(3 * ["!</ .</ </refined>"]),
    ]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    return save_model(tokenizer, kind)
