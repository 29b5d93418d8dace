"""What a run was asked for, beside each of its checkpoints: a resumed run is compared with it."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .files import RUN_NAME
from .json_files import read_json


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked for, and on what it works. None means not known: it is compared with nothing."""

    settings: dict[str, Any] = field(default_factory=dict)  # by their names in `TrimConfig`
    num_steps: int | None = None  # optimizer steps that the drops were planned for
    start: dict[str, float] | None = None  # from where: `depth`, `step`, `epoch`
    is_over: bool | None = None  # whether dropping had stopped for good
    calibration: str | None = None  # fingerprint of the calibration set
    evaluation: str | None = None  # fingerprint of the evaluation set
    model: dict[str, Any] | None = None  # config of the untrimmed model
    adapter: str | None = None  # kind of PEFT adapter, such as LORA; "none": there is none
    base_weights: str | None = None  # fingerprint of layers that checkpoints do not hold

    def save(self, directory: str | Path) -> Path:
        """Write `trim_run.json` into `directory` and return its path."""
        path = Path(directory) / RUN_NAME
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> "RunRecord | None":
        """Read what `save` wrote; None: an older version wrote the checkpoint. Other keys are left alone."""
        path = Path(directory) / RUN_NAME
        if not path.is_file():
            return None
        data = read_json(path)
        return cls(**{key: value for key, value in data.items() if key in {entry.name for entry in fields(cls)}})
