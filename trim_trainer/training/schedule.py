"""When layers are dropped and how many: arithmetic on steps and epochs, no torch."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

# Share of an automatic schedule, behind `trim_delay`, in which layers are dropped; the rest is left to heal.
# With depths that are kept as they are on the way it is more: they need steps to heal, too.
DROPPING_RATIO = 0.2
DROPPING_RATIO_OF_FAMILY = 0.5
# Share of all layers that goes at a time, where the config leaves it open.
TRIM_RATIO = 0.2


@dataclass(frozen=True)
class Start:
    """From where drops are planned: the beginning of a run, or where it goes on by another plan."""

    depth: int
    step: int = 0
    epoch: float = 0.0

    def position(self, strategy: str) -> float:
        """In optimizer steps, or in epochs."""
        return self.step if strategy == "steps" else self.epoch


@dataclass(frozen=True)
class TrimSchedule:
    """The depth a run has to have from each position on.

    `points` is a tuple of `(position, depth)` in rising order of position. A position is an optimizer step
    (`trim_strategy="steps"`) or an epoch (`"epoch"`).
    """

    num_layers: int
    strategy: str
    points: tuple[tuple[int, int], ...]
    start: float = 0  # position from which on it holds

    def depth_at(self, step: int, epoch: float) -> int:
        """Depth that is due after `step` optimizer steps and `epoch` epochs."""
        position = step if self.strategy == "steps" else epoch
        return min((depth for start, depth in self.points if start <= position), default=self.num_layers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Every depth at which the model trains, deepest first."""
        return (self.num_layers, *(depth for _, depth in self.points))

    @property
    def interval(self) -> int | None:
        """The `trim_steps` that would give this schedule from the beginning; None: none would, or epochs count."""
        positions = [position for position, _ in self.points]
        is_even = positions and positions == [positions[0] * number for number in range(1, len(positions) + 1)]
        return positions[0] if is_even and self.strategy == "steps" and not self.start else None

    def leaves_time_to_heal(self, max_steps: int, num_epochs: float) -> bool:
        """Whether a run of that length trains on after the last drop."""
        total = max_steps if self.strategy == "steps" else num_epochs
        return all(position < total for position, _ in self.points)

    def members_cost(self, save_depths: Collection[int], total: float) -> float:
        """What training these depths on to the end costs, from where they are left: a share of the run's own layer steps."""
        left_at = {depth: end for depth, (end, _) in zip(self.depths, self.points, strict=False)}
        steps = sum(depth * (total - left_at[depth]) for depth in save_depths if depth in left_at)
        return steps / (self.mean_depth(total) * (total - self.start))

    def mean_depth(self, total: float) -> float:
        """Layers that train at a time, averaged over the rest of a run of `total` steps or epochs."""
        starts = (self.start, *(start for start, _ in self.points), total)
        spans = zip(self.depths, pairwise(starts), strict=True)
        return sum(depth * (end - start) for depth, (start, end) in spans) / (total - self.start)


def resolve_target(num_layers: int, target_layers: int | None, target_ratio: float | None) -> int:
    """Return the depth to reach, in layers.

    Raises:
        ValueError: the target is not between 1 and `num_layers - 1`.
    """
    if target_layers is not None:
        if not 1 <= target_layers < num_layers:
            raise ValueError(
                f"`target_layers` is {target_layers}, but the model has {num_layers} layers: expected a depth between "
                f"1 and {num_layers - 1}."
            )
        return target_layers
    num_drops = round(target_ratio * num_layers)
    if not 1 <= num_drops < num_layers:
        raise ValueError(
            f"`target_ratio` is {target_ratio}, which drops {num_drops} of {num_layers} layers: expected at least 1 "
            f"and at most {num_layers - 1}. Set `target_layers` to name the depth."
        )
    return num_layers - num_drops


def plan_schedule(
    num_layers: int,
    target_layers: int,
    *,
    total: float,
    strategy: str = "steps",
    layers_per_trim: int = 1,
    trim_steps: float | None = None,
    trim_delay: float = 0,
    save_depths: Collection[int] = (),
    heals_depths: bool = True,
    start: float = 0,
) -> TrimSchedule:
    """Spread the drops over a run of `total` steps (`strategy="steps"`) or epochs (`"epoch"`).

    Args:
        num_layers: Depth of the model at `start`.
        target_layers: Depth to reach.
        total: Length of the run, in optimizer steps or in epochs.
        strategy: `"steps"` or `"epoch"`.
        layers_per_trim: Layers dropped each time.
        trim_steps: Steps between two drops; below 1 a share of `total`; None: as many as leave the last four
            fifths of the run to heal, with `save_depths` that are not healed the second half. Epochs always have an
            interval of one.
        trim_delay: Steps or epochs before the first drop can happen; below 1, with steps, a share of `total`.
        save_depths: Depths that are not passed over: a trim that would drops fewer layers.
        heals_depths: Whether these train on behind the run, so that the run need not heal them.
        start: Steps or epochs that the run has behind it; what is left of it is spread over.

    Raises:
        ValueError: the run is too short to reach the target.
    """
    stops = {target_layers, *(depth for depth in save_depths if depth > target_layers)}
    depths = [num_layers]
    while depths[-1] > target_layers:
        depths.append(max(depths[-1] - layers_per_trim, *(stop for stop in stops if stop < depths[-1])))
    share = DROPPING_RATIO_OF_FAMILY if save_depths and not heals_depths else DROPPING_RATIO
    positions = _positions(len(depths) - 1, start, total, strategy, trim_steps, trim_delay, share)
    if len(positions) < len(depths) - 1:
        reached = depths[len(positions)]
        ways = _ways_out(num_layers - target_layers, len(positions), strategy, trim_steps, trim_delay)
        behind = f", of which {start:g} are over," if start else ""
        raise ValueError(
            f"`target_layers` is {target_layers}, but {total:g} {strategy.removesuffix('s')}s{behind} have room for "
            f"{len(positions)} drop(s) of {layers_per_trim} layer(s), which ends at {reached} of {num_layers} layers. To "
            f"reach the target {', or '.join(ways)}."
        )
    return TrimSchedule(num_layers, strategy, tuple(zip(positions, depths[1:], strict=False)), start)


def choose_layers_per_trim(layers_per_trim: int | None, num_layers: int) -> int:
    """Layers that go at a time: as the config says; None: a fifth of a model of `num_layers`."""
    return layers_per_trim or max(1, round(TRIM_RATIO * num_layers))


def plan_run(args, history, max_steps: int, num_train_epochs: float, start: Start | None = None) -> TrimSchedule:
    """The depths of a run of so many optimizer steps, or epochs where `trim_strategy` is `"epoch"`.

    Args:
        args: A `TrimConfig`.
        history: Of the run so far.
        max_steps: Its optimizer steps.
        num_train_epochs: Its epochs.
        start: From where they are planned; None: from the depth of `history`, at the beginning.

    Raises:
        ValueError: the run is too short to reach the target, or passes over one of `save_depths`.
    """
    start = start or Start(history.depth)
    schedule = plan_schedule(
        start.depth,
        history.target_layers,
        total=num_train_epochs if args.trim_strategy == "epoch" else max_steps,
        strategy=args.trim_strategy,
        layers_per_trim=choose_layers_per_trim(args.layers_per_trim, history.num_layers),
        trim_steps=args.trim_steps,
        trim_delay=args.trim_delay,
        save_depths=args.save_depths or (),
        heals_depths=args.heal_depths,
        start=start.position(args.trim_strategy),
    )
    passed = {history.num_layers, *(a_round.depth_after for a_round in history.rounds)}
    missing = sorted(set(args.save_depths or ()) - set(schedule.depths) - passed)
    if missing:
        raise ValueError(f"`save_depths` contains {missing}, but the run has the depths {schedule.depths}.")
    return schedule


def _positions(
    num_trims: int, start: float, total: float, strategy: str, trim_steps: float | None, delay: float, share: float
) -> list[int]:
    if num_trims == 0:
        return []
    if strategy == "steps":
        delay = _in_steps(delay, total)
    if strategy == "steps" and trim_steps is None:
        begin = max(start, delay)
        room = min(math.floor((total - begin) * share), total - begin - 1)
        interval = max(1, math.floor(room / num_trims))
        positions = [int(begin) + interval * (i + 1) for i in range(num_trims)]
    else:
        interval = 1 if strategy == "epoch" else int(_in_steps(trim_steps, total))
        first = max(1, math.ceil(delay / interval), math.floor(start / interval) + 1)
        positions = [interval * (first + i) for i in range(num_trims)]
    return [position for position in positions if position <= total]


def _in_steps(value: float, total: float) -> float:
    """Below 1 a share of all steps, rounded up as the Trainer does."""
    return math.ceil(value * total) if value < 1 else value


def _ways_out(num_drops: int, num_trims: int, strategy: str, interval: float | None, delay: float) -> list[str]:
    ways = ["raise `num_train_epochs`" if strategy == "epoch" else "raise the number of steps"]
    if num_trims:
        ways.append(f"set `layers_per_trim` to {math.ceil(num_drops / num_trims)}")
    if delay:
        ways.append("lower `trim_delay`")
    if strategy == "epoch":
        ways.append('set `trim_strategy` to "steps"')
    elif interval is not None:
        ways.append("lower `trim_steps`")
    return ways
