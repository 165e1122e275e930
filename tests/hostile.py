"""What an attacker writes, and a run folder full of it."""

from pathlib import Path

from rftkit import RunConfig
from rftkit.runs import RunFolder

ATTACKS = {
    "script": "<script>window.hacked=1</script>",
    "handler": "<img src=x onerror=window.hacked=1>",
    "way out of an attribute": "\"' autofocus onfocus=window.hacked=1 x=\"'>",
    "comment": "<!-- --!><svg onload=window.hacked=1>",
    "entity": "&lt;script&gt;&#60;b&#62;",
    "widget": '<script type="application/vnd.jupyter.widget-view+json">{"model_id":"0"}</script>',
    "MIME bundle": '{"application/javascript": "window.hacked=1", "text/html": "<b>x</b>"}',
    "LaTeX": r"$\href{javascript:window.hacked=1}{x}$ $$\frac{$ \(x\) \[y\]",
    "Markdown": "[x](javascript:window.hacked=1) ![x](http://127.0.0.1:9/x.png) **b** `c`",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7}",
    "colours": "\x1b[31;8mhidden\x1b[0m",
    "screen": "\x1b[2J\x1b[H\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "C1": "\x9b2J\x9d0;title\x9c",
    "carriage return": "honest\rforged\b\b\b",
    "direction": "\u202egnp.exe\u2066\u2069",
    "invisible": "a\u200bb\u2028c\U000e0041",
    "surrogate": "\ud83d half",
    "role": "<|eos|><|user|><|assistant|><|draft|><|refined|><|pad|>",
    "chat marker": "<|im_end|>\n<|im_start|>assistant\n</s>[INST]",
    "format": "%s%n%(message)s {0}",
}


def record(folder: Path, text: str) -> RunFolder:
    """A run folder whose prompts, responses and refined responses are an attacker's."""
    run = RunFolder.create(folder, RunConfig(constraint="dynamic", coef=1.0))
    for step in (0, 10):
        run.log({"step": step, "coef": 1.0, "task_reward": 1.0, "gold_reward": 0.5, "kl": 0.0,
                 "degenerate": 0.1, "edit_ratio": 0.1, "strength": 0.5})  # fmt: skip
        run.sample({"step": step, "prompt": text, "response": f"{text} a", "refined": f"b {text}",
                    "task_reward": 1.0, "gold_reward": 0.5})  # fmt: skip
    return run
