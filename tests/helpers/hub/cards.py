"""The checks that the Hub makes on the metadata of a README.md."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

LICENSES = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other""".split()
REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
MISSING = "empty or missing yaml metadata in repo card"
REQUIRED = {"task": ["type"], "dataset": ["type", "name"]}  # of a result of a model index


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Check a README.md.

    Returns:
        Errors, for which the Hub refuses the file, and warnings.
    """
    block = _find_block(content)
    if block is None:
        return [], [MISSING]
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError as error:
        return [f"Invalid YAML in README.md: {error}"], []
    if isinstance(metadata, list):
        return ['"value" must be of type object'], []
    if not isinstance(metadata, dict):
        return ["The YAML metadata of your README.md is invalid."], []
    return [error for check in CHECKS for error in check(metadata)], []


def read_metadata(content: str) -> dict[str, Any]:
    """The metadata of a card that passed the checks, {} if it has none."""
    return yaml.safe_load(_find_block(content) or "{}")


def _find_block(content: str) -> str | None:
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", content, re.DOTALL | re.MULTILINE)
    return found and found[1]


def _check_license(metadata: dict) -> Iterator[str]:
    values = metadata.get("license", [])
    for value in values if isinstance(values, list) else [values]:
        if value not in LICENSES:
            yield f'"license" must be one of [{", ".join(LICENSES)}, array]'


def _check_base_model(metadata: dict) -> Iterator[str]:
    values = metadata.get("base_model", [])
    for value in values if isinstance(values, list) else [values]:
        if value == "":
            yield '"base_model" is not allowed to be empty'
        elif not isinstance(value, str) or not REPO_ID.fullmatch(value):
            yield f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models.'


def _check_datasets(metadata: dict) -> Iterator[str]:
    values = metadata.get("datasets", [])
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        if not isinstance(value, str) or not REPO_ID.fullmatch(value):
            name, hint = f"datasets[{number}]", "If possible, use a dataset id from https://hf.co/datasets."
            yield f'"{name}" with value "{value}" is not valid. {hint}'


def _check_types(metadata: dict) -> Iterator[str]:
    for key in ("widget", "model-index"):
        if not isinstance(metadata.get(key, []), list):
            yield f'"{key}" must be an array'
    for key in ("pipeline_tag", "library_name"):
        if not isinstance(metadata.get(key, ""), str):
            yield f'"{key}" must be a string'
    for key in ("tags", "language"):
        values = metadata.get(key, [])
        if not isinstance(values, (list, str)) or not all(isinstance(value, str) for value in values):
            yield f'"{key}" must be a string or an array of strings'


def _check_model_index(metadata: dict) -> Iterator[str]:
    index = metadata.get("model-index", [])
    for number, model in enumerate(index if isinstance(index, list) else []):
        name = f"model-index[{number}]"
        if not isinstance(model.get("name"), str):
            yield f'"{name}.name" is required'
        if "results" not in model:
            yield f'"{name}.results" is required'
        for position, result in enumerate(model.get("results") or []):
            yield from _check_result(result, f"{name}.results[{position}]")


def _check_result(result: dict, name: str) -> Iterator[str]:
    for part, keys in REQUIRED.items():
        for key in keys:
            if (result.get(part) or {}).get(key) is None:
                yield f'"{name}.{part}.{key}" is required'
    if not isinstance((result.get("dataset") or {}).get("config", ""), str):
        yield f'"{name}.dataset.config" must be a string'
    if "source" in result and not (result["source"] or {}).get("url"):
        yield f'"{name}.source.url" is required'
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        yield f'"{name}.metrics" must be an array'
        return
    for number, metric in enumerate(metrics):
        for key in ("type", "value"):
            if metric.get(key) is None:
                yield f'"{name}.metrics[{number}].{key}" is required'
        if not isinstance(metric.get("config", ""), str):
            yield f'"{name}.metrics[{number}].config" must be a string'


CHECKS = [_check_license, _check_base_model, _check_datasets, _check_types, _check_model_index]
