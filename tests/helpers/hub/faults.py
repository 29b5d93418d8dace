"""Failures that a test switches on: error statuses, cut connections, lost answers."""

from collections.abc import Callable
from dataclasses import dataclass

STORAGE_LIMIT = (
    "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"
)


@dataclass
class Fault:
    """What goes wrong at a step.

    Attributes:
        step: The name of a step (first column of the route tables), or a predicate on (method, path).
        kind: An HTTP status; or "cut", the connection closes half-way through the body of the request (of the
            answer, if the request has none); or "lost", the request is carried out but nothing is answered.
        times: How often it strikes; None is for ever.
        skip: How many requests pass before it first strikes.
        message: The error text that comes with a status.
        num_struck: How often it has struck.
    """

    step: str | Callable[[str, str], bool]
    kind: int | str
    times: int | None = None
    skip: int = 0
    message: str = "This failure was asked for by a test"
    num_struck: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, int) and self.kind not in ("cut", "lost"):
            raise ValueError(f'`kind` is {self.kind!r}, expected an HTTP status, "cut" or "lost".')

    def strikes(self, step: str, method: str, path: str) -> bool:
        """Whether this request fails; counts it if so."""
        meant = self.step(method, path) if callable(self.step) else self.step == step
        if not meant or self.num_struck == self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.num_struck += 1
        return True


class Faults:
    """The faults that are switched on; the first that matches a request acts."""

    def __init__(self, steps: set[str]):
        self._steps = steps
        self._faults: list[Fault] = []

    def add(self, step: str | Callable[[str, str], bool], kind: int | str, **options) -> Fault:
        """Switch a fault on.

        Args:
            step: See `Fault`.
            kind: See `Fault`.
            **options: `times`, `skip` and `message` of `Fault`.

        Raises:
            ValueError: If no route has this step, or `kind` is unknown.
        """
        if isinstance(step, str) and step not in self._steps:
            raise ValueError(f"Unknown step {step!r}. Available: {', '.join(sorted(self._steps))}.")
        self._faults.append(Fault(step, kind, **options))
        return self._faults[-1]

    def clear(self) -> None:
        """Switch all faults off."""
        self._faults.clear()

    def take(self, step: str, method: str, path: str) -> Fault | None:
        """The fault that strikes this request, if any."""
        return next((fault for fault in self._faults if fault.strikes(step, method, path)), None)
