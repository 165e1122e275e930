"""One frozen base in 4 bits, three roles: with its LoRA adapter it is the policy, without it the
reference and the refiner. No second copy of the base is kept.

`load_policy` takes the shipped tiny model or any causal LM in the Hugging Face format.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from rftkit.chat import encode_chat, encode_text
from rftkit.config import check_choice
from rftkit.errors import UserError
from rftkit.hub import loading, locate
from rftkit.paths import embedded, learned_tasks
from rftkit.state import reading

log = logging.getLogger("rftkit")
BLINK_BYTES = 1e9  # of weights; less needs no loading bar


@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and its tokenizer.

    `precision` is what was loaded, which may be less than was asked for.
    """

    model: Any  # a PeftModel, whose attributes mypy cannot follow
    tokenizer: Any
    name: str
    precision: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a response: the tokenizer's EOS and the model's own."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None)

    @property
    def learned_tasks(self) -> frozenset[str] | None:
        """The tasks that an embedded model was pre-trained on; None for any other model."""
        return learned_tasks(self.name)

    @property
    def refines_natively(self) -> bool:
        """Whether the tokenizer knows the draft and refined roles of the embedded model."""
        return native(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        return encode_text(self.tokenizer, text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation, up to where the next turn begins; see `rftkit.chat`.

        Raises UserError for a model without a chat template.
        """
        if not self.tokenizer.chat_template:
            raise UserError(f"model: {self.name!r} has no chat template; choose an instruct model")
        return encode_chat(self.tokenizer, messages)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response without its EOS; other special tokens stay visible."""
        kept = list(ids)
        while kept and kept[-1] in self.eos_ids:
            kept.pop()
        return self.tokenizer.decode(kept)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters: all that training changes."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapter is off and nothing records gradients: the reference model."""
        with torch.no_grad(), self.model.disable_adapter():
            yield

    def adapter(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter's weights by name."""
        named = self.model.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}

    @torch.no_grad()
    def load_adapter(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the adapter's weights with what `adapter` gave."""
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                p.copy_(weights[name])

    @contextmanager
    def with_adapter(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the model has another adapter: an earlier policy as reference."""
        mine = self.adapter()
        self.load_adapter(weights)
        try:
            with torch.no_grad():
                yield
        finally:
            self.load_adapter(mine)

    def memory_gb(self) -> dict[str, float]:
        """GB held by the base's weights and by the adapter's."""
        sizes = {"base": 0, "adapter": 0}
        for p in self.model.parameters():
            sizes["adapter" if p.requires_grad else "base"] += p.numel() * p.element_size()
        return {part: size / 1e9 for part, size in sizes.items()}


def load_policy(
    model: str = "tiny",
    precision: str = "nf4",
    device: str = "auto",
    *,
    lora_rank: int = 8,
    seed: int = 0,
    adapter: Path | None = None,
) -> Policy:
    """Load a base once and put a LoRA adapter on every linear layer.

    model: "tiny" (shipped), a folder, or a name on the Hugging Face hub.
    precision: "nf4" (4-bit, double quantisation), "bf16" or "fp32"; where the device cannot do it,
    the next one that works is taken and a line says so.
    adapter: a folder saved by PEFT; without it the adapter is fresh (B = 0, A from `seed`).
    Raises UserError where the model cannot be read, or a setting is unknown.
    """
    check_choice("precision", precision)
    target = pick_device(device, model)
    precision = _supported(precision, target)
    base, tokenizer = _load_base(model, precision, target)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied embeddings, which we leave frozen
        if adapter is None:
            lora = LoraConfig(
                r=lora_rank,
                lora_alpha=2 * lora_rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            peft: Any = get_peft_model(base, lora)
        else:
            with reading(adapter, "take another adapter or run"):
                peft = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    peft.eval()  # no dropout anywhere: sampling and training see one policy
    _keep_differentiable(peft)
    return Policy(peft, tokenizer, model, precision)


def native(tokenizer: Any) -> bool:
    """Whether a tokenizer knows the draft and refined roles of the embedded model."""
    return "<|refined|>" in tokenizer.get_vocab()


def stays_on_cpu(device: str, model: str) -> bool:
    """Whether no other device is wanted, whatever there is.

    An embedded model is so small that a GPU spends its time on starting kernels: "auto" takes the
    CPU for it (data/runs/gpu-or-cpu.json).
    """
    return device == "cpu" or (device == "auto" and embedded(model))


def pick_device(device: str, model: str = "") -> torch.device:
    """Resolve "auto"; fall back to the CPU, with one line, where the device is missing.

    Raises UserError for a device that is none.
    """
    check_choice("device", device)
    if stays_on_cpu(device, model):
        device = "cpu"
    elif device == "auto":
        device = next((d for d in ("cuda", "mps") if _present(d)), "cpu")
    elif not _present(device):
        log.warning("device %r is not available here: using the CPU", device)
        device = "cpu"
    return torch.device(device)


def supports_nf4(device: torch.device) -> bool:
    """Whether bitsandbytes can quantise and multiply in NF4 on `device`: tried, not guessed."""
    try:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        x = torch.ones(1, 64, device=device, dtype=layer.compute_dtype or torch.float32)
        return bool(torch.isfinite(layer(x)).all())
    except Exception:  # whatever is missing (package, kernel, driver), the answer is no
        return False


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Activations: bf16 on accelerators, fp32 on CPUs, where bf16 is no faster for small models."""
    if precision == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if precision == "nf4" and device.type != "cpu" else torch.float32


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NF4, its scales quantised too (QLoRA, arXiv:2305.14314); products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _present(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available()
    return torch.backends.mps.is_available() if device == "mps" else device == "cpu"


def _supported(precision: str, device: torch.device) -> str:
    if precision == "nf4" and not supports_nf4(device):
        instead = "fp32" if device.type == "cpu" else "bf16"
        log.warning("4-bit (NF4) does not work on %s here: using %s", device.type, instead)
        return instead
    return precision


def _load_base(model: str, precision: str, device: torch.device) -> tuple[Any, Any]:
    path = locate(model)
    dtype = compute_dtype(precision, device)
    options: dict[str, Any] = {"dtype": dtype}
    if precision == "nf4":
        options["device_map"] = {"": device}
    with loading(model):
        stored = getattr(AutoConfig.from_pretrained(path), "quantization_config", None)
        if stored and precision != "nf4":
            raise UserError(f"model: {model!r} is stored in 4 bits; use it with --precision nf4")
        if precision == "nf4" and not stored:
            options["quantization_config"] = nf4_config(dtype)
        with _quiet() if _loads_in_a_blink(path) else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(path)
            base: Any = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **options)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model: the tokenizer of {model!r} has no EOS token; set one, or take another"
        )
    return (base if precision == "nf4" else base.to(device)), tokenizer


def _keep_differentiable(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking its weights for CPU inference.

    It does so in eval mode on processors with AVX512-BF16, and that kernel has no backward: the
    adapter's gradient would be silently wrong.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()


def _loads_in_a_blink(path: str) -> bool:
    """Whether a model lies here and is small."""
    sizes = (file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return Path(path).is_dir() and sum(sizes) < BLINK_BYTES


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no loading bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
