"""The errors that a command ends on with one line: what a user typed, what lies on the disk, what the network did.

Anything else is a mistake of this package, or of a library, and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable

from ..causes import tell

WRONG, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit statuses; 128 and the number of the signal, as shells count

# Module -> names of its errors, beside ValueError, OSError, ImportError and what inherits from them. They are looked up where
# their module is loaded: an error of one that is not was never raised.
NAMED = {
    "datasets.exceptions": ("DatasetsError",),
    "httpx": ("HTTPError", "InvalidURL"),
    "jinja2": ("TemplateError",),
    "pyarrow.lib": ("ArrowException",),
    "safetensors": ("SafetensorError",),
    "trim_trainer.exporting.environments": ("ExportError",),
    "trim_trainer.checkpoints.verification": ("VerificationError",),
    "trim_trainer.hub.publishing": ("PublishError",),
    "trim_trainer.surgery.drop": ("SurgeryError",),
}


def say_errors(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command and return its exit status; an error that is named here is one line on stderr."""
    try:
        status = run(arguments)
        sys.stdout.flush()  # a pipe that nobody reads any more is noticed here, not when Python ends
        return status
    except KeyboardInterrupt:
        print("trim-trainer: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except _named_errors() as error:
        print(f"trim-trainer: {tell(error)}", file=sys.stderr)
        return WRONG


def _named_errors() -> tuple[type[Exception], ...]:
    loaded = ((sys.modules[module], names) for module, names in NAMED.items() if module in sys.modules)
    found = [getattr(module, name) for module, names in loaded for name in names if hasattr(module, name)]
    return (ValueError, OSError, ImportError, *found)
