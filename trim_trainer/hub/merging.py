"""A new card over one that people edited, three ways: what was written last, what is there now, what is new."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..records.json_files import parse_json

# Between these marks a card is generated; outside of them it belongs to people.
BEGIN, END = "<!-- trim-trainer: generated from here -->", "<!-- trim-trainer: generated to here -->"
# Inside them, for the next time: the metadata that were written, by which those that people changed are known.
_RECORD = re.compile(r"<!-- trim-trainer wrote: (.*?) -->\n")
_OF_SET = re.compile(r"accuracy on (.+?)(?: \(n = \d+\))?$")
# Fields that mean something only together: whoever changed one has changed them all.
TOGETHER = (("license", "license_name", "license_link"), ("base_model", "base_model_relation"))
# Fields of which each entry stands for itself.
LISTS = ("tags", "datasets")
RESULTS = "model-index"

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A card in its parts."""

    metadata: Metadata
    before: str  # what stands in front of our marks
    ours: str | None  # with the marks, without the record; None: the card is not one of ours
    after: str
    written: Metadata | None  # by the record; None: there is none
    outside: str | None  # digest of what people's text was then

    @classmethod
    def read(cls, text: str) -> "Card":
        """Take a card apart.

        Raises:
            ValueError: its metadata are no YAML, or no mapping.
        """
        block = re.match(REGEX_YAML_BLOCK, text)
        metadata, body = _load(block[2]) if block else {}, text[block.end() :] if block else text
        if BEGIN not in body or END not in body:
            return cls(metadata, body, None, "", None, None)
        start, end = body.index(BEGIN), body.index(END) + len(END)
        found = _RECORD.search(body, start, end)
        record = _read_record(found[1]) if found else {}
        ours = _RECORD.sub("", body[start:end])
        return cls(metadata, body[:start], ours, body[end:], record.get("metadata"), record.get("outside"))

    @property
    def digest(self) -> str:
        """Of what stands outside of our marks."""
        return hashlib.sha256(f"{self.before}\n{self.after}".strip().encode()).hexdigest()[:16]


def merge_cards(existing: str | None, generated: str) -> str:
    """Put a new card into one that people may have edited: what they changed stays, the rest is renewed.

    Of the text, only what stands between our marks is replaced; a card without them is kept whole, below. Of the metadata,
    what people changed, added or removed since they were written last stays so; where nothing says what was written, all
    that is there is theirs.
    """
    new = Card.read(generated)
    before, after, metadata = new.before, new.after, new.metadata
    if existing is not None:
        old = Card.read(existing)
        metadata = merge_metadata(old.metadata, new.metadata, old.written)
        if old.ours is None:
            before, after = "\n", f"\n\n{old.before.strip()}\n"
        elif old.outside != old.digest:
            before, after = old.before, old.after
    record = json.dumps({"metadata": new.metadata, "outside": new.digest}).replace(">", "\\u003e")
    ours = new.ours.replace(END, f"<!-- trim-trainer wrote: {record} -->\n{END}")
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n{before}{ours}{after}"


def _read_record(text: str) -> dict[str, Any]:
    """What was written last; nothing, where somebody has edited the record."""
    try:
        return parse_json(text, "the record")
    except ValueError:
        return {}


def merge_metadata(there: Metadata, new: Metadata, written: Metadata | None) -> Metadata:
    """Renew what was written last, and leave what people changed.

    Args:
        there: The metadata as they are now.
        new: What is to be written.
        written: What was written last; None: nothing, or nobody knows.
    """
    base, merged = written or {}, dict(there)
    for fields in _units({**new, **base}):
        if fields[0] in LISTS:
            value = _merge_lists(*(_entries(each, fields[0]) for each in (there, new, base)))
            chosen = {fields[0]: value} if value else {}
        elif fields[0] == RESULTS:
            value = _merge_results(*(each.get(RESULTS) or [] for each in (there, new, base)))
            chosen = {RESULTS: value} if value else {}
        else:
            theirs, is_known = _pick(there, fields), written is not None
            is_changed = theirs != _pick(base, fields) if is_known else bool(theirs)
            chosen = theirs if is_changed else _pick(new, fields)
        for name in fields:
            merged.pop(name, None) if name not in chosen else merged.update({name: chosen[name]})
    return merged


def _units(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The fields in their groups, each once."""
    of_group = {name: fields for fields in TOGETHER for name in fields}
    yield from dict.fromkeys(of_group.get(name, (name,)) for name in names)


def _pick(metadata: Metadata, fields: tuple[str, ...]) -> Metadata:
    return {name: metadata[name] for name in fields if name in metadata}


def _entries(metadata: Metadata, name: str) -> list:
    value = metadata.get(name) or []
    return value if isinstance(value, list) else [value]


def _merge_lists(there: list, new: list, base: list) -> list:
    """What people have, without what was ours and is no more, and with what is new of ours."""
    kept = [entry for entry in there if entry in new or entry not in base]
    return kept + [entry for entry in new if entry not in kept and entry not in base]


def _merge_results(there: list, new: list, base: list) -> list:
    """A model index: numbers of people stay, of ours what they changed, until it is measured anew."""
    ours, last = ({key: entry for _, key, *entry in _metrics(index)} for index in (new, base))
    results: dict[Any, dict] = {}
    seen = set()
    for place, key, result, metric in _metrics(there):
        seen.add(key)
        if key in ours and ours[key] != last.get(key):
            _add(results, place, *ours[key])
        elif key in ours or [result, metric] != last.get(key):
            _add(results, place, result, metric)
    for place, key, result, metric in _metrics(new):
        if key not in seen and key not in last:
            _add(results, ("new", place), result, metric)
    names = [index[0].get("name") if index else None for index in (there, new, base)]
    name = names[0] if names[0] not in (None, names[2]) else names[1] or names[0]
    return [{"name": name, "results": list(results.values())}] if results else []


def _add(results: dict[Any, dict], place: Any, result: dict, metric: dict) -> None:
    results.setdefault(place, result | {"metrics": []})["metrics"].append(metric)


def _metrics(index: list) -> Iterator[tuple[int, str, dict, dict]]:
    """Each number of a model index: its result's place, what it measures, the result without metrics, the metric."""
    all_results = [result for model in index for result in model.get("results") or []]
    for place, result in enumerate(all_results):
        rest = {name: value for name, value in result.items() if name != "metrics"}
        for metric in result.get("metrics") or []:
            dataset = {key: value for key, value in (rest.get("dataset") or {}).items() if key != "name"}
            set_name = _OF_SET.match(str(metric.get("name") or ""))  # several evaluation sets differ in nothing else
            what = [(rest.get("task") or {}).get("type"), dataset, metric.get("type"), metric.get("config")]
            what.append(set_name and set_name[1])
            yield place, json.dumps(what, sort_keys=True), rest, metric


class _HubLoader(yaml.SafeLoader):
    """Reads words as the Hub does, by YAML 1.2: `no` is a language and no truth value, a date is a text."""


_OTHERWISE = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_HubLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag not in _OTHERWISE]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_HubLoader.add_implicit_resolver(_OTHERWISE[0], re.compile("true|false", re.IGNORECASE), list("tTfF"))


def _load(block: str) -> Metadata:
    try:
        metadata = yaml.load(block, Loader=_HubLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of README.md are no YAML, correct them: {error}") from error
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError(
            f"the metadata of README.md are a {type(metadata).__name__}, expected a mapping: correct them"
        )
    return metadata or {}
