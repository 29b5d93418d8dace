"""`trim-trainer publish` in a process of its own, against the Hub of the tests."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass

import huggingface_hub
import torch
from datasets import Dataset
from forked import CONTEXT
from huggingface_hub.utils import _http
from tiny import make_examples, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from trim_trainer import TrimConfig, TrimTrainer
from trim_trainer.cli.main import main
from trim_trainer.hub.publishing import PublishError


@dataclass(frozen=True)
class Said:
    """What a run of the command printed, and its exit status."""

    status: int
    output: str
    errors: str


def connect(endpoint, token, home, has_xet):
    """Let the client of this process speak to the Hub of the tests, and not sleep between its attempts."""
    constants = huggingface_hub.constants
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = endpoint, False, not has_xet
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HOME, constants.HF_HUB_CACHE = str(home), f"{home}/hub"
    constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH = f"{home}/token", f"{home}/stored_tokens"
    os.environ |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}
    os.environ |= {"HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    _http.time = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})


def _run(queue, arguments, connection):
    connect(*connection)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as exit_:
            status = exit_.code
    queue.put(Said(status, output.getvalue(), errors.getvalue()))


def command(arguments, endpoint, token, home, has_xet=False):
    """Run `trim-trainer` in a forked process and return what it said."""
    queue = CONTEXT.Queue()
    process = CONTEXT.Process(target=_run, args=(queue, arguments, (endpoint, token, home, has_xet)))
    process.start()
    said = queue.get(timeout=120)
    process.join(30)
    return said


def _train(queue, output_dir, settings, connection):
    connect(*connection)
    said = io.StringIO()
    logging.getLogger("trim_trainer").addHandler(logging.StreamHandler(said))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(output_dir, **settings)
        trainer.train()
        try:
            done = [f"{each.revision} {each.depth}" for each in trainer.push_to_hub()]
            queue.put(Said(0, "\n".join(done), said.getvalue()))
        except PublishError as error:
            queue.put(Said(2, "", f"{said.getvalue()}\n{error}"))


def train_and_push(output_dir, settings, endpoint, token, home, has_xet=False):
    """Train in a forked process with `push_to_hub`, publish the result, and return what was logged."""
    queue = CONTEXT.Queue()
    connection = (endpoint, token, home, has_xet)
    process = CONTEXT.Process(target=_train, args=(queue, str(output_dir), settings, connection))
    process.start()
    said = queue.get(timeout=120)
    process.join(30)
    return said


def make_trainer(output_dir, trainer_class=TrimTrainer, peft_config=None, **settings):
    """A trainer of the tiny model on the way from six to three layers."""
    torch.set_num_threads(1)
    train, evaluation = (Dataset.from_list(make_examples(number, first)) for number, first in ((64, 0), (24, 100)))
    base = {
        "use_cpu": True, "bf16": False, "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, "target_layers": 3,
        "calibration_size": 8,
    }  # fmt: skip
    return trainer_class(
        make_model(), TrimConfig(output_dir=str(output_dir), **(base | settings)), train_dataset=train,
        eval_dataset=evaluation, processing_class=make_tokenizer(), peft_config=peft_config,
    )  # fmt: skip


IDS = torch.arange(10, 40).view(2, 15)
# Run with nothing but transformers: what a reader of the Hub gets.
LOADER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(10, 40).view(2, 15)
found = {}
for revision in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision=revision)
    found[revision] = [model.config.num_hidden_layers, model(input_ids=ids).logits.tolist()]
assert "trim_trainer" not in sys.modules
print(json.dumps(found))
"""


# The same with PEFT, in each way that there is: `revision`, and the base model that the adapter's config names.
ADAPTER_LOADER = """
import json, sys, torch
from huggingface_hub import snapshot_download
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
ids, name, found = torch.arange(10, 40).view(2, 15), sys.argv[1], {}
for revision in sys.argv[2:]:
    where = {"subfolder": "adapter", "revision": revision}
    base = AutoModelForCausalLM.from_pretrained(name, revision=revision)
    config = PeftConfig.from_pretrained(name, **where)
    named = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, revision=config.revision)
    models = [PeftModel.from_pretrained(each, name, **where) for each in (base, named)]
    models.append(AutoPeftModelForCausalLM.from_pretrained(snapshot_download(name, revision=revision) + "/adapter"))
    found[revision] = [model.eval()(input_ids=ids).logits.tolist() for model in models]
assert "trim_trainer" not in sys.modules
print(json.dumps(found))
"""


def load_elsewhere(source, revisions, endpoint, home, has_xet=False, loader=LOADER):
    """Load revisions in a fresh process with an empty cache; return depth and logits of each, or what `loader` finds."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {} if has_xet else {"HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", loader, source, *revisions],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_elsewhere(server, repo_id, folder, depths, home):
    """Load each revision in a fresh process; its depth must be as given, its logits those of the local checkpoint."""
    found = load_elsewhere(repo_id, [*depths], server.endpoint, home, has_xet=True)
    for revision, depth in depths.items():
        local = AutoModelForCausalLM.from_pretrained(folder / ("." if revision == "main" else revision))
        with torch.no_grad():
            logits = local(input_ids=IDS).logits
        assert found[revision][0] == depth
        torch.testing.assert_close(torch.tensor(found[revision][1]), logits, atol=1e-3, rtol=1e-4)
