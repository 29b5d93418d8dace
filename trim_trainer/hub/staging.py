"""What goes to the Hub: the files of each depth, checked before anything is sent."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import sha_fileobj

from ..records.export_report import ExportReport
from ..records.facts import CardFacts
from ..records.files import (
    ADAPTER_CONFIG,
    ADAPTER_DIR,
    DEPTH_DIR,
    EXPORT_NAME,
    HISTORY_NAME,
    IMPORTANCE_PLOT,
    METRIC_PLOT,
    RECIPE_NAME,
)
from ..records.history import TrimHistory
from ..records.json_files import read_json
from ..records.settings import read_settings, without_local_path, without_local_paths
from .checks import StagingError, check_config, check_text, choose_weights, own_code, way_out
from .export_card import LIBRARIES
from .layout import CONFIG, TEMPLATES, kind_of

# Nothing else leaves the machine: no training arguments, optimizer, random states, logs or checkpoints.
LOADED = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*",
    "merges.txt", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    f"{TEMPLATES}/*.jinja", "*processor_config.json",
]  # fmt: skip
PUBLISHED = [*LOADED, "adapter_*", "trim_*.png", HISTORY_NAME, RECIPE_NAME, f"{ADAPTER_DIR}/*adapter_*"]
_TEXTS = (".json", ".yaml", ".md", ".jinja", ".txt")


@dataclass(frozen=True)
class Staged:
    """One depth, ready to be sent; `files` is by path in the repository, content as bytes where it is not a file's."""

    revision: str
    folder: Path
    history: TrimHistory
    files: dict[str, Path | bytes]
    left_out: tuple[str, ...] = ()  # of another layout or another model, which loaders would take instead
    report: ExportReport | None = None  # of what was exported; None: a checkpoint

    @property
    def ending(self) -> str:
        """Of the tags that name it."""
        return f"depth-{self.history.depth}" if self.report is None else self.revision

    @property
    def title(self) -> str:
        """What it is, for a commit."""
        what = f"{self.history.depth} of {self.history.num_layers} layers"
        return (
            what
            if self.report is None
            else f"{what} for {LIBRARIES[self.report.target].title}, weights in {self.report.weights}"
        )

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a base model and an adapter, which are loaded one after the other."""
        return f"{ADAPTER_DIR}/{ADAPTER_CONFIG}" in self.files

    @property
    def has_code(self) -> bool:
        """Whether the model comes with code of its own, which whoever loads it has to trust."""
        return any(name.endswith(".py") for name in self.files)

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(path.stat().st_size for name, path in self.files.items() if name.endswith(".safetensors"))


def stage(directory: str | Path, repo_id: str) -> list[Staged]:
    """Collect and check the depths of a run: those of `save_depths` as `depth-N`, the folder itself as `main`, last.

    Of what `export` wrote, that alone, as `openvino-int8` and the like.

    Raises:
        StagingError: a checkpoint is missing or cut short, or a file holds a local path or a secret.
    """
    folder = Path(directory)
    try:
        if (folder / EXPORT_NAME).is_file():
            return [_stage_export(folder)]
        depths = sorted(
            folder.glob(f"{DEPTH_DIR}*"), key=lambda path: int(path.name.removeprefix(DEPTH_DIR)), reverse=True
        )
        return [*(_stage_one(path, path.name, repo_id) for path in depths), _stage_one(folder, "main", repo_id)]
    except StagingError:
        raise
    except ValueError as error:  # a file that cannot be read
        raise StagingError(str(error)) from error


def _stage_one(folder: Path, revision: str, repo_id: str) -> Staged:
    found = (*folder.glob("*"), *folder.glob(f"{ADAPTER_DIR}/**/*"), *folder.glob(f"{TEMPLATES}/*"))
    paths = [path for path in found if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    files: dict[str, Path | bytes] = {
        name: names[name] for name in filter_repo_objects(sorted(names), allow_patterns=PUBLISHED)
    }
    for name in (HISTORY_NAME, CONFIG):
        if name not in files:
            raise StagingError(f"{str(folder)!r} holds no {name}: {way_out(folder, names)}")
    for name in files:
        if name.endswith(".json"):
            read_json(folder / name)
    history = TrimHistory.load(folder)
    check_config(folder / CONFIG, history.depth)
    weights = choose_weights(folder, history)
    left_out = [name for name in names if kind_of(name) in ("weights", "adapter") and "/" not in name]
    left_out = sorted(set(left_out) - weights.files)
    files = {name: path for name, path in files.items() if name not in left_out}
    files |= _name_base(files, repo_id, revision)
    history = share_history(history, folder)
    files[HISTORY_NAME] = (history.to_json() + "\n").encode()
    files |= own_code(folder, names)
    files |= _missing_plots(history, files)
    if RECIPE_NAME in files:
        files[RECIPE_NAME] = _share_recipe(files[RECIPE_NAME])
    _check_texts(folder, files)
    return Staged(revision, folder, history, files, tuple(left_out))


def _stage_export(folder: Path) -> Staged:
    """What `export` wrote, as it was compared with its checkpoint: a branch of its own."""
    report = ExportReport.load(folder)
    if not (folder / HISTORY_NAME).is_file():
        raise StagingError(
            f"{str(folder)!r} was exported from a model that was not trimmed here. `hf upload` puts it on the Hub."
        )
    changed = [name for name, digest in report.files.items() if not _is_file(folder / name, digest)]
    if changed:
        raise StagingError(
            f"{str(folder)!r} is not what was compared with the checkpoint: {', '.join(changed)} is missing or has changed. "
            "Export it again."
        )
    history = share_history(TrimHistory.load(folder), folder)
    report = replace(report, source=without_local_path(report.source))
    is_on_the_way = history.stopped is None and history.is_above_target
    revision = report.revision + (f"-{DEPTH_DIR}{history.depth}" if is_on_the_way else "")
    files: dict[str, Path | bytes] = {name: folder / name for name in report.files}
    files |= {HISTORY_NAME: (history.to_json() + "\n").encode(), EXPORT_NAME: report.to_json().encode()}
    _check_texts(folder, files)
    return Staged(revision, folder, history, files, report=report)


def _is_file(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def share_history(history: TrimHistory, folder: Path) -> TrimHistory:
    """The history of a folder without paths of this machine.

    Raises:
        StagingError: it says nothing for a card.
    """
    if history.card is None:
        raise StagingError(f"{HISTORY_NAME} in {str(folder)!r} has no `card`: save the model again with this version.")
    facts = CardFacts(**without_local_paths(vars(history.card)))
    return replace(history, card=replace(facts, recipe=without_local_paths(facts.recipe)))


def _check_texts(folder: Path, files: dict[str, Path | bytes]) -> None:
    for name, content in files.items():
        if name.endswith(_TEXTS) and not name.startswith(("tokenizer", "vocab", "merges")):
            # A chat template came with the base model, and may speak of paths: gpt-oss tells the model where its drive is.
            is_code = name.endswith(".jinja") or name.startswith("chat_template")
            check_text(f"{folder / name}", as_bytes(content).decode("utf-8"), is_code)


def _missing_plots(history: TrimHistory, files: dict) -> dict[str, bytes]:
    """The pictures that the card shows, where they are not beside the weights, as in a checkpoint to resume from."""
    scored, drawn = history.scored, {}
    if not scored.rounds or {IMPORTANCE_PLOT, METRIC_PLOT} <= files.keys():
        return drawn
    from ..records.plots import plot_importance, plot_metric  # matplotlib is slow to load, and rarely needed here

    for name, plot, is_due in (
        (IMPORTANCE_PLOT, plot_importance, scored.rounds),
        (METRIC_PLOT, plot_metric, scored.drops),
    ):
        if is_due and name not in files:
            plot(scored, buffer := io.BytesIO())
            drawn[name] = buffer.getvalue()
    return drawn


def with_base(staged: Staged, repo_id: str) -> Staged:
    """Let the adapters name their base model as it will be on the Hub, in full."""
    return replace(staged, files=staged.files | _name_base(staged.files, repo_id, staged.revision))


def _name_base(files: dict[str, Path | bytes], repo_id: str, revision: str) -> dict[str, bytes]:
    """The configs of adapters, which name the folder of their base model here: a depth's is in a revision of its own."""
    base = {"base_model_name_or_path": repo_id, "revision": revision}
    return {
        name: json.dumps(json.loads(as_bytes(content)) | base, indent=2).encode()
        for name, content in files.items()
        if name.endswith(ADAPTER_CONFIG)
    }


def _share_recipe(path: Path) -> Path | bytes:
    """The recipe without paths of this machine; one that has none as it is, with its comments."""
    try:
        recipe = read_settings(path)
    except ValueError as error:
        raise StagingError(f"{error} Correct the file, then publish again.") from error
    shared = without_local_paths(recipe)
    return path if shared == recipe else yaml.safe_dump(shared, sort_keys=False).encode()


def as_bytes(content: Path | bytes) -> bytes:
    """The content of a staged file."""
    return content if isinstance(content, bytes) else content.read_bytes()


def sha256(content: Path | bytes) -> str:
    """SHA-256, by which the Hub knows large files."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return sha_fileobj(file).hex()
