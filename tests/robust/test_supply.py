"""Nothing is fetched, unpickled or run that is not ours; warnings about our code are errors."""

import ast
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from small import model_folder

from rftkit import UserError, load_policy, load_task
from rftkit.rollout import Sampler
from rftkit.tasks import Prompt
from rftkit.tasks.code_specs import KINDS, apply, chain_of

PACKAGE = Path(__file__).resolve().parents[2] / "rftkit"
# Loads Python objects, or runs text; the sandbox's worker runs text, in the sandbox.
FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
RUNS_TEXT = {"eval", "exec", "compile"}

WATCH = """
import os, socket, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        if event != "socket.connect" or arguments[0].family != socket.AF_UNIX:
            with open(os.environ["RFTKIT_TEST_CONNECTIONS"], "a") as file:
                file.write(f"{event} {arguments[1:]}\\n")
sys.addaudithook(hook)
"""


def test_the_source_unpickles_nothing_and_trusts_no_remote_code() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & FORBIDDEN
            elif isinstance(node, ast.keyword):
                trusted = isinstance(node.value, ast.Constant) and node.value.value is False
                names = {node.arg} & {"trust_remote_code", "allow_pickle"} if not trusted else set()
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & RUNS_TEXT if "sandbox" not in path.parts else set()
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load"):
                names = {ast.unparse(node)}
            found += [f"{path.name}: {name}" for name in names]
    assert found == ["code_specs.py: eval"], "of the table's own text and numbers; see below"


def test_a_row_of_data_is_never_run(tmp_path: Path) -> None:
    done = tmp_path / "done"
    prompt = load_task("code").prompts("heldout")[0]
    takes, name = next(iter(KINDS))
    attack = f"1) or open({str(done)!r}, 'w') or (1"
    columns = prompt.columns | {"takes": takes, "parts": [[name, attack]]}
    with pytest.raises(UserError, match="takes, parts: no chain"):
        apply(chain_of(replace(prompt, columns=columns)), 1)
    assert not done.exists()


def test_every_model_is_loaded_from_safetensors() -> None:
    text = (PACKAGE / "models.py").read_text(encoding="utf-8")
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    loads = [c for c in calls if ast.unparse(c.func) == "AutoModelForCausalLM.from_pretrained"]
    assert loads
    for call in loads:
        assert ("use_safetensors", True) in [(k.arg, ast.literal_eval(k.value))
                                             for k in call.keywords if k.arg]  # fmt: skip


def test_a_default_run_opens_no_connection(tmp_path: Path) -> None:
    """Watched by an audit hook in every process; where the system can, without any network."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    connections = tmp_path / "connections"
    command = [
        sys.executable, "-m", "rftkit.cli", "compare", "--constraints", "dynamic", "--steps", "1",
        "--prompts", "2", "--group", "2", "--eval-prompts", "2", "--out", str(tmp_path / "out"),
        "--json",
    ]  # fmt: skip
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        command = alone + command
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {"PYTHONPATH": str(tmp_path), "RFTKIT_TEST_CONNECTIONS": str(connections)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
    assert not connections.exists(), connections.read_text()


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    environment = dict(os.environ) | {
        "PYTHONPATH": str(tmp_path), "RFTKIT_TEST_CONNECTIONS": str(tmp_path / "connections"),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "socket.connect" in (tmp_path / "connections").read_text()


def test_a_warning_about_our_own_code_is_an_error() -> None:
    for kind in (DeprecationWarning, FutureWarning, UserWarning):
        with pytest.raises(kind):
            warnings.warn_explicit("old", kind, "trainer.py", 1, module="rftkit.trainer")


# Tokenizers of other models may lack what ours has.


def _without(tmp_path: Path, *tokens: str) -> str:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(), folder)
    place = folder / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps({k: v for k, v in settings.items() if k not in tokens}))
    if "chat_template" in tokens:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return str(folder)


PROMPT = Prompt(({"role": "user", "content": "tea"},))


def test_a_tokenizer_without_pad_token_works(tmp_path: Path) -> None:
    policy = load_policy(_without(tmp_path, "pad_token"), "fp32")
    assert policy.tokenizer.pad_token_id is None
    longer = Prompt(({"role": "user", "content": "large tea, please"},))
    rollouts = Sampler(policy).sample([PROMPT, longer], group=2, max_new_tokens=3)
    assert len(rollouts) == 4


def test_a_tokenizer_without_eos_or_chat_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no EOS token"):
        load_policy(_without(tmp_path / "a", "eos_token"), "fp32")
    policy = load_policy(_without(tmp_path / "b", "chat_template"), "fp32")
    with pytest.raises(UserError, match="no chat template"):
        Sampler(policy).sample([PROMPT], group=1, max_new_tokens=3)


def test_a_prompt_longer_than_the_window_is_named() -> None:
    policy = load_policy(model_folder(), "fp32")
    endless = Prompt(({"role": "user", "content": "tea " * 5000},))
    with pytest.raises(UserError, match=r"text 2 of 2 has \d+ tokens .* the model reads \d+"):
        Sampler(policy).sample([PROMPT, endless], group=1, max_new_tokens=3)
