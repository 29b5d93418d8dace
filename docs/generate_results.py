"""Fill the tables of docs/pages/results.md and README.md that pool runs, over seeds and machines, from docs/results.csv.

And those of docs/pages/faster.md, from docs/inference.csv; of several runtimes and weights, from docs/frontier.csv; of the
second and the third model, from docs/gemma.csv and docs/qwen.csv.

python docs/generate_results.py
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import frontier_table
import inference_table
import other_models
from csv_rows import read
from matplotlib.figure import Figure

from trim_trainer.comparison.methods import METHODS
from trim_trainer.comparison.picture import draw_methods
from trim_trainer.records.plots import label_by_depth
from trim_trainer.records.statistics import students_t
from trim_trainer.training.schedule import plan_schedule

PICTURE = Path(__file__).with_name("results.png")
PAGES = (
    Path(__file__).parent / "pages" / "results.md",
    Path(__file__).parent / "pages" / "faster.md",
    Path(__file__).parent / "pages" / "sublayers.md",
    Path(__file__).parent / "pages" / "vocabulary.md",
    Path(__file__).parent / "pages" / "adapters.md",
    Path(__file__).parent.with_name("README.md"),
)
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

NUM_LAYERS, DEPTHS = 30, (20, 15, 12)
BATCH_SIZE, LAYERS_PER_TRIM = 8, 3
PROTECTED, SCANNED = "0 1 2 3 4 5 6 7 8 9", ("progressive", "progressive_sublayers", "one_shot")


@dataclass(frozen=True)
class Task:
    """What was trained on, for how long, at which rate without compensation."""

    title: str
    data: str
    samples: int
    epochs: int
    num_examples: int
    rate: float = 3e-4
    lost: int = 0  # examples more, in a set, that may have no token to score within `--max_length`

    @property
    def domain(self) -> str:
        """The title without the number of steps."""
        return self.title.split(",")[0]

    def automatic_interval(self, depth: int, at_once: int) -> int:
        """Steps between two drops of an automatic schedule."""
        steps = math.ceil(self.samples / BATCH_SIZE) * self.epochs
        return plan_schedule(NUM_LAYERS, depth, total=steps, layers_per_trim=at_once).points[0][0]


NEWS, NEWS_LONG = Task("news, 200 steps", "fpb", 1600, 1, 966), Task("news, 846 steps", "fpb", 3383, 2, 966)
MEDICINE = Task("medicine, 200 steps", "medmcqa_subject", 1600, 1, 989)
MEDICINE_LONG = Task("medicine, 642 steps", "medmcqa_subject", 2567, 2, 989)
LAW = Task("law, 573 steps", "cuad_yesno", 4800, 1, 2324, 1e-4)
LAW_SHORT = Task("law, 193 steps", "cuad_yesno", 1600, 1, 600, 1e-4)
LAW_BRIEF = replace(LAW_SHORT, num_examples=2213, lost=2)  # those that `--max_length 256` leaves a token to score
LAW_LONG = replace(LAW, num_examples=2213, lost=2)
TASKS = (NEWS, MEDICINE, LAW, NEWS_LONG, MEDICINE_LONG)
DEFAULT_TASKS, LONG_TASKS = (NEWS, MEDICINE, LAW_BRIEF), (NEWS_LONG, MEDICINE_LONG, LAW_LONG)


@dataclass(frozen=True)
class Setting:
    """A line of a table: runs that differ in seed and machine alone."""

    title: str
    method: str
    rate: float = 3e-4
    steps: int | None = None  # between drops; None: within the first fifth of the run
    delay: int = 0
    scored_on: int = 24
    compensation: int = 0
    protected: str = PROTECTED
    at_once: int = LAYERS_PER_TRIM
    criterion: str = "sensitivity"
    scales_rate: bool = False  # times the layers that were over those that are left
    num_tokens: int | None = None  # that stay; None: all
    adapts: bool = False  # a LoRA adapter trains, in place of all parameters

    @property
    def is_progressive(self) -> bool:
        """Layers go while the model trains."""
        return METHODS[self.method].drops == "while"

    def runs(self, task: Task, depth: int) -> dict[tuple[str, str], dict]:
        """The runs, by machine and seed."""
        return by_machine(
            run
            for run in read("results.csv")
            if self._is_mine(run, task, NUM_LAYERS if self.method == "full" else depth)
        )

    def runs_in_time(self, task: Task, depth: int) -> dict[tuple[str, str], dict]:
        """The runs with as many steps as the seconds of full depth had room for."""
        usual = {"num_steps": "", "trim_steps": str(task.automatic_interval(depth, self.at_once))}
        return by_machine(
            run for run in read("results.csv") if run["num_steps"] and self._is_mine(run | usual, task, depth)
        )

    def _is_mine(self, run: dict, task: Task, depth: int) -> bool:
        settings = (run["dataset_name"], run["max_train_samples"], run["num_train_epochs"])
        if settings != tuple(map(str, (task.data, task.samples, task.epochs))) or run.get("num_steps"):
            return False
        if not 0 <= task.num_examples - int(run["num_examples"]) <= task.lost:
            return False
        if bool(run["use_peft"]) != self.adapts:
            return False
        if (run["method"], int(run["depth"]), float(run["learning_rate"])) != (self.method, depth, self.rate):
            return False
        if METHODS[self.method].compensates and int(run["compensation_size"] or 0) != self.compensation:
            return False
        if self.method in SCANNED:
            scanned = (run["importance"] or "sensitivity", run["protected_layers"])
            if scanned != (self.criterion, self.protected):
                return False
            if not 0 <= self.scored_on - int(run["calibration_size"]) <= task.lost:
                return False
        if not self.is_progressive:
            return True
        if run.get("vocab_size", "") != str(self.num_tokens or ""):
            return False
        steps = self.steps or task.automatic_interval(depth, self.at_once)
        schedule = (int(run["layers_per_trim"] or 1), float(run["trim_steps"]), float(run["trim_delay"] or 0))
        return (*schedule, bool(run["scale_learning_rate"])) == (self.at_once, steps, self.delay, self.scales_rate)


def by_machine(runs: Iterable[dict]) -> dict[tuple[str, str], dict]:
    """The first run of each machine and seed."""
    found: dict[tuple[str, str], dict] = {}
    for run in runs:
        found.setdefault((run["device"].split(",")[0], run["seed"]), run)
    return found


FULL, FULL_HIGH = Setting("full depth, lr 1e-4", "full", 1e-4), Setting("full depth, lr 3e-4", "full")
SCAN = Setting("progressive, scan", "progressive")
SCAN_FIRST = replace(SCAN, title="progressive, scan, first steps", steps=1)
SCAN_THIRD = replace(SCAN, steps=3)
SCAN_FIRST_96 = replace(SCAN_FIRST, title="progressive, scan, first steps, 96 examples", scored_on=96)
SCAN_COMPENSATED = replace(SCAN, title="progressive, scan, compensated", compensation=200)
SCAN_BOTH = replace(SCAN_FIRST_96, title="progressive, scan, first steps, 96 examples, compensated", compensation=200)
SCAN_LATE = replace(SCAN, title="progressive, scan, after step 200", steps=20, delay=200)
SCAN_LATER = replace(SCAN, title="progressive, scan, after step 100", steps=5, delay=100)
LAST = Setting("progressive, last layers", "progressive_tail")
LAST_COMPENSATED = replace(LAST, title="progressive, last layers, compensated", compensation=200)
LAST_FIRST_COMPENSATED = replace(LAST_COMPENSATED, title="progressive, last layers, first steps, compensated", steps=1)
# Scored as they are dropped: with the layer in front taking over, and none protected.
AS_DROPPED = replace(SCAN, title="96 examples, five at a time", compensation=96, protected="", at_once=5)
AS_DROPPED_200 = replace(SCAN, title="200 examples, three at a time", compensation=200, protected="")
TRIED = (
    replace(SCAN, title="by score, lr 3e-4", compensation=64),
    replace(SCAN, title="by score, none protected, lr 3e-4", compensation=64, protected=""),
    replace(SCAN, title="the last but one, first steps, lr 3e-4", compensation=200, criterion="tail", steps=1,
            protected=f"{PROTECTED} 29"),
    replace(SCAN, title="the last, first steps, lr 3e-4", compensation=64, criterion="tail", steps=1, protected=""),
)  # fmt: skip
TAIL = Setting("one-shot, last layers", "tail")
TAIL_COMPENSATED = Setting("one-shot, last layers, compensated", "tail_compensated", compensation=200)
ONE_SHOT = Setting("one-shot, same criterion", "one_shot")
CONTROLS = (
    TAIL_COMPENSATED,
    TAIL,
    ONE_SHOT,
    Setting("one-shot, block influence", "block_influence"),
    Setting("one-shot, last layers; trains head + last 3", "tail_head"),
    Setting("one-shot, random", "random"),
)
PROGRESSIVE = (
    LAST_COMPENSATED, LAST_FIRST_COMPENSATED, LAST, SCAN_FIRST_96, SCAN_BOTH, SCAN_FIRST, SCAN, SCAN_COMPENSATED, SCAN_LATE,
    SCAN_LATER,
)  # fmt: skip


DEFAULT = replace(
    SCAN,
    title="**the default**",
    compensation=64,
    criterion="late_sensitivity",
    rate=FULL.rate,
    at_once=6,
    scales_rate=True,
)
THREE = replace(DEFAULT, title="three at a time", at_once=3)


def among(depth: int) -> tuple[Setting, ...]:
    """The default, and what differs from it."""
    constant = replace(THREE, scales_rate=False)
    higher = f"{NUM_LAYERS / depth:.3g}e-4"
    raised = replace(constant, title=f"three at a time, lr {higher}", rate=float(higher))
    return (
        DEFAULT,
        replace(DEFAULT, title="the default, by score", criterion="sensitivity"),
        replace(DEFAULT, title="the default, by score, none protected", criterion="sensitivity", protected=""),
        replace(DEFAULT, title="the default, the last", method="progressive_tail"),
        replace(DEFAULT, title="the default, the rate as it is", scales_rate=False),
        THREE,
        replace(constant, title="three at a time, lr 1e-4"),
        raised,
        replace(raised, title=f"three at a time, by score, lr {higher}", criterion="sensitivity"),
        replace(raised, title=f"three at a time, the last, lr {higher}", criterion="tail", protected=""),
    )


def at(task: Task, settings: tuple[Setting, ...]) -> list[Setting]:
    """Lines at the rate of a task, and those that may want the rate of full depth at that too."""
    lower = [each for each in settings if (each.compensation or each.method == "tail") and task.rate != FULL.rate]
    return [replace(setting, rate=task.rate) for setting in settings] + [
        replace(setting, title=f"{setting.title}, lr 1e-4", rate=FULL.rate) for setting in lower
    ]


def accuracy(run: dict) -> float:
    """Of one run."""
    return float(run["accuracy"])


def by_seed(figures: dict[tuple[str, str], float]) -> dict[str, float]:
    """The mean of each seed over its machines, which are not independent of each other."""
    seeds = sorted({seed for _, seed in figures})
    return {seed: statistics.fmean(value for key, value in figures.items() if key[1] == seed) for seed in seeds}


def seeds_of(runs: dict, name: str = "accuracy") -> dict[str, float]:
    """One figure, by seed."""
    return by_seed({key: float(run[name]) for key, run in runs.items()})


def mean(runs: dict, name: str = "accuracy") -> float:
    """Of one figure."""
    return statistics.fmean(seeds_of(runs, name).values())


def points(runs: dict, others: dict) -> str:
    """How many points of accuracy are between two lines, paired by machine and seed; with a star by seed alone, if that is more."""
    star, one, other = "*", seeds_of(runs), seeds_of(others)
    pairs = {seed: one[seed] - other[seed] for seed in one if seed in other}
    shared = runs.keys() & others.keys()
    if len(on_one := by_seed({key: accuracy(runs[key]) - accuracy(others[key]) for key in shared})) == len(pairs):
        star, pairs = "", on_one
    if not pairs:
        return ""
    middle, low, high = students_t([100 * pair for pair in pairs.values()])
    return f"{middle:+.1f}{star}" if low == high else f"{middle:+.1f} ({low:+.1f} to {high:+.1f}){star}"


def over_seeds(runs: dict) -> tuple[float, float, float]:
    """Mean accuracy and its interval."""
    return students_t(list(seeds_of(runs).values()))


def interval(runs: dict) -> str:
    """Mean accuracy with its interval; of one seed the accuracy."""
    middle, low, high = over_seeds(runs)
    return f"{middle:.3f}" if low == high else f"{middle:.3f} ({max(0.0, low):.3f}–{min(1.0, high):.3f})"


def table(*lines: list[str]) -> str:
    """The first line is the head."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest])


def highest(task: Task, depth: int, settings: tuple[Setting, ...]) -> tuple[Setting | None, dict]:
    """The setting that ends highest, of those with three seeds or more if there is one, and its runs; empty: none was run."""
    found = [(setting, runs) for setting in at(task, settings) if (runs := setting.runs(task, depth))]
    return max(found, key=lambda each: (len(seeds_of(each[1])) > 2, mean(each[1])), default=(None, {}))


def described(setting: Setting, runs: dict) -> str:
    """Accuracy of a line, and what it is, in a column that says whether layers go at once."""
    return f"{mean(runs):.3f} ({re.sub('^(progressive|one-shot), ', '', setting.title)})"


def best_progressive(task: Task, depth: int) -> tuple[Setting | None, dict]:
    """Of those that drop layers while the model trains."""
    return highest(task, depth, PROGRESSIVE)


def controls(task: Task) -> str:
    """Every method at every depth; in bold the best progressive one of a depth, of three seeds or more if there is one."""
    full = FULL.runs(task, NUM_LAYERS)

    def line(depth, setting, runs, chosen, best):
        is_best = setting == chosen
        return [
            str(depth), f"**{setting.title}**" if is_best else setting.title, str(len(runs)), interval(runs),
            f"{mean(runs, 'macro_f1'):.3f}", "" if runs is full else points(runs, full),
            "" if is_best else points(best, runs), f"{mean(runs, 'loss'):.3f}",
        ]  # fmt: skip

    lines = [
        ["layers", "method", "runs", "accuracy", "macro-F1", "points over full depth at 1e-4", "bold over it", "loss"]
    ]
    for setting, runs in ((FULL, full), (FULL_HIGH, FULL_HIGH.runs(task, NUM_LAYERS))):
        lines.append(line(NUM_LAYERS, setting, runs, None, {}))
    for depth in DEPTHS:
        settings = at(task, PROGRESSIVE) + at(task, CONTROLS)
        found = [(setting, runs) for setting in settings if (runs := setting.runs(task, depth))]
        lines += [line(depth, setting, runs, *best_progressive(task, depth)) for setting, runs in found]
    return table(*lines)


def draw() -> None:
    """Draw accuracy against depth, of progressive and of every control, one panel per task."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, task in zip(panels, (NEWS, MEDICINE, LAW), strict=True):
        found = {"full": {NUM_LAYERS: best_full(task)}}
        found["progressive"] = {depth: best_progressive(task, depth)[1] for depth in DEPTHS}
        for control in CONTROLS:
            found[control.method] = {depth: replace(control, rate=task.rate).runs(task, depth) for depth in DEPTHS}
        lines = {
            method: {depth: over_seeds(runs) for depth, runs in by_depth.items() if runs}
            for method, by_depth in found.items()
        }
        draw_methods(axes, {method: line for method, line in lines.items() if line})
        label_by_depth(axes, "accuracy", task.title)
    for axes in panels[1:]:
        axes.get_legend().remove()
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})


def best_full(task: Task) -> dict:
    """Full depth at its best rate; empty: none was run."""
    found = (runs for setting in (FULL, FULL_HIGH) if (runs := setting.runs(task, NUM_LAYERS)))
    return max(found, key=mean, default={})


def summary() -> str:
    """Full depth at its best rate, the best progressive row of three seeds or more, and the controls that come close."""
    lines = [
        ["", "full depth", "progressive", "its points over full depth"]
        + ["one-shot, same criterion", "one-shot, last layers", "the same, compensated"]
    ]

    def show(runs):
        return f"{mean(runs):.3f}{' (one seed)' if len(seeds_of(runs)) == 1 else ''}" if runs else ""

    for task in TASKS:
        full = best_full(task)
        for depth in DEPTHS:
            setting, best = best_progressive(task, depth)
            if len(seeds_of(best)) < 3:
                continue
            others = [replace(other, rate=task.rate).runs(task, depth) for other in (ONE_SHOT, TAIL, TAIL_COMPENSATED)]
            line = [f"{task.title}, {depth} layers", f"{mean(full):.3f}", described(setting, best), points(best, full)]
            lines.append([*line, *map(show, others)])
    return table(*lines)


def headline() -> str:
    """Half of the layers, and fewer, by the default, next to full depth and to the last layers at once."""
    depths, head = (15, 12), ["by the default", "full depth"]
    for depth in depths:
        head += [f"{depth} layers", "points over full depth", "last layers at once"]
    lines = [head]
    for task in DEFAULT_TASKS:
        full = best_full(task)
        line = [task.title, f"{mean(full):.3f}"]
        for depth in depths:
            runs, at_once = DEFAULT.runs(task, depth), replace(TAIL, rate=task.rate).runs(scored_before(task), depth)
            line += [f"{mean(runs):.3f}", points(runs, full), f"{mean(at_once):.3f}"]
        lines.append(line)
    return table(*lines)


def by_hand() -> str:
    """Half of the layers: the best progressive row of three seeds or more, next to full depth and to the last layers at once."""
    lines = [
        ["picked by hand", "full depth", "15 layers", "points over full depth"]
        + ["last layers at once", "points over those"]
    ]
    for task in TASKS:
        full, (_, best) = best_full(task), best_progressive(task, 15)
        at_once = replace(TAIL, rate=task.rate).runs(task, 15)
        line = [task.title, f"{mean(full):.3f}", f"{mean(best):.3f}", points(best, full)]
        lines.append([*line, f"{mean(at_once):.3f}", points(best, at_once)])
    return table(*lines)


def longer() -> str:
    """Half of the layers after longer runs."""
    tasks = (NEWS_LONG, MEDICINE_LONG)
    lines = [["", *(task.title for task in tasks)]]
    compensated = at(NEWS_LONG, (TAIL_COMPENSATED, LAST_COMPENSATED))
    for setting in (FULL_HIGH, FULL, TAIL, *compensated, SCAN, SCAN_FIRST, SCAN_FIRST_96, DEFAULT):
        cells = []
        for task in tasks:
            runs, full = setting.runs(task, 15), best_full(task)
            more = "" if not runs or runs == full else f", {points(runs, full)}"
            cells.append(f"{mean(runs):.3f} ({len(runs)}){more}" if runs else "")
        if any(cells):
            lines.append([setting.title, *cells])
    return table(*lines)


def forgotten() -> str:
    """What else the models can, of one run each."""
    lines = [["", "ARC-Easy", "WikiText-2 perplexity"]]
    for task in (NEWS, MEDICINE, LAW):
        for setting in (FULL, FULL_HIGH, *at(task, (TAIL, TAIL_COMPENSATED, ONE_SHOT, *PROGRESSIVE))):
            for (machine, seed), run in setting.runs(task, 15).items():
                if run["arc_easy_accuracy"] and "H100" in machine and seed == "0":
                    figures = f"{float(run['arc_easy_accuracy']):.3f}", f"{float(run['wikitext2_perplexity']):,.0f}"
                    lines.append([f"{task.domain}, {setting.title}", *figures])
    return table(*lines)


def differences(head: str, rows: list[tuple[str, Task, Setting, Setting]]) -> str:
    """Points of one setting over another one, by depth."""
    lines = [[head, *(f"{depth} layers" for depth in DEPTHS)]]
    for title, task, one, other in rows:
        cells = []
        for depth in DEPTHS:
            runs, others = one.runs(task, depth), other.runs(task, depth)
            shared = len(runs.keys() & others.keys())
            cells.append(f"{points(runs, others)} ({shared})" if shared else "")
        lines.append([title, *cells])
    return table(*lines)


def compensation() -> str:
    """With and without, the last layers at once."""
    rows = [
        (task.title, task, replace(TAIL_COMPENSATED, rate=task.rate), replace(TAIL, rate=task.rate)) for task in TASKS
    ]
    return differences("last layers at once", rows)


def scored_as_dropped() -> str:
    """One setting for both tasks, next to the best that was picked by hand for each, and to full depth."""
    return next_to_the_best("scored as dropped", (NEWS, MEDICINE), lambda depth: (AS_DROPPED, AS_DROPPED_200))


def one_setting() -> str:
    """The default, and what it was chosen among."""
    return next_to_the_best("setting", DEFAULT_TASKS, lambda depth: [*among(depth), *TRIED])


def every_cell(tasks: Iterable[Task], depths: Iterable[int]) -> str:
    """The default on each task at each depth, next to full depth, the best setting picked by hand, and the best control."""
    lines = [
        ["", "full depth", "the default", "points over full depth", "best by hand", "points", "best control", "points"]
    ]
    for task in tasks:
        known, full = scored_before(task), best_full(task)
        for depth in depths:
            runs, shown = DEFAULT.runs(task, depth), full or best_full(known)
            line = [f"{task.title}, {depth} layers", interval(shown), interval(runs), points(runs, full)]
            for settings in (PROGRESSIVE, CONTROLS):
                setting, other = highest(known, depth, settings)
                line += [described(setting, other) if other else "", points(runs, other) if known == task else ""]
            lines.append(line)
    return table(*lines)


def scored_before(task: Task) -> Task:
    """The task whose runs the best by hand and the controls are: of law on a part of the test split, so not to be paired."""
    return {LAW_BRIEF: LAW_SHORT, LAW_LONG: LAW}.get(task, task)


def one_setting_in_time() -> str:
    """The default at half of the layers, over the steps of full depth and in its seconds, next to full depth."""
    lines = [["15 layers", "full depth", "the default, equal steps", "points", "equal seconds", "points", "its steps"]]
    for task in DEFAULT_TASKS:
        full, runs, longer = FULL.runs(task, NUM_LAYERS), DEFAULT.runs(task, 15), DEFAULT.runs_in_time(task, 15)
        if longer:
            steps = ", ".join(run["num_steps"] for run in longer.values())
            cells = [interval(full), interval(runs), points(runs, full), interval(longer), points(longer, full), steps]
            lines.append([task.title, *cells])
    return table(*lines)


def sublayers() -> str:
    """Layers and seams among what can go, next to layers alone, by the default."""
    both = replace(DEFAULT, method="progressive_sublayers")
    return beside(DEFAULT, both, "layers", "layers and seams")


def lora() -> str:
    """An adapter at full depth, and at half of it by the default, with a rate that rises and one that does not."""
    default = replace(DEFAULT, title="15 layers, **the default**", rate=1e-3, compensation=0, adapts=True)
    settings = [
        Setting("full depth, lr 3e-4", "full", adapts=True),
        Setting("full depth, lr 1e-3", "full", 1e-3, adapts=True),
        default,
        replace(default, title="15 layers, the rate as it is", scales_rate=False),
    ]
    lines = [["", "accuracy", "loss", "runs"]]
    for setting in settings:
        runs = setting.runs(MEDICINE, 15)
        lines.append([setting.title, interval(runs), f"{mean(runs, 'loss'):.3f}", str(len(runs))])
    return table(*lines)


def fewer_tokens() -> str:
    """A smaller vocabulary, next to the whole one, by the default."""
    return beside(DEFAULT, replace(DEFAULT, num_tokens=16384), "all tokens", "16,384 tokens")


def beside(one: Setting, other: Setting, *titles: str) -> str:
    """Two settings side by side, wherever both ran with a seed: accuracy and loss of each, and the difference."""
    lines = [["", *(f"{title}: accuracy (loss)" for title in titles), "runs of each", "points"]]
    for task in DEFAULT_TASKS:
        for depth in DEPTHS:
            runs, others = one.runs(task, depth), other.runs(task, depth)
            shared = sorted(runs.keys() & others.keys())
            runs, others = ({key: each[key] for key in shared} for each in (runs, others))
            if shared:
                cells = [f"{interval(each)} ({mean(each, 'loss'):.3f})" for each in (runs, others)]
                lines.append([f"{task.title}, {depth} layers", *cells, str(len(shared)), points(others, runs)])
    return table(*lines)


def next_to_the_best(title: str, tasks: Iterable[Task], settings: Callable[[int], Iterable[Setting]]) -> str:
    """Settings, next to the best that was picked by hand for each task and depth, and to full depth."""
    lines = [["", title, "accuracy", "loss", "runs", "best by hand", "points over it", "points over full depth"]]
    for task in tasks:
        full, known = best_full(task), scored_before(task)
        for depth in DEPTHS:
            other, best = best_progressive(known, depth)
            by_hand = described(other, best)
            for setting in settings(depth):
                if runs := setting.runs(task, depth):
                    cells = [setting.title, interval(runs), f"{mean(runs, 'loss'):.3f}", str(len(runs)), by_hand]
                    over = [points(runs, best) if known == task else "", points(runs, full)]
                    lines.append([f"{task.title}, {depth} layers", *cells, *over])
    return table(*lines)


def schedule() -> str:
    """The first steps, or every third, against the first fifth of the run."""
    rows = [
        (f"{task.domain}, `--trim_steps {setting.steps}`", task, setting, SCAN)
        for task in (NEWS, MEDICINE)
        for setting in (SCAN_FIRST, SCAN_THIRD)
    ]
    return differences("scan", rows)


def equal_time() -> str:
    """More steps at half of the layers in the seconds of full depth, of the runs whose seconds were taken."""
    compensated = replace(LAST_COMPENSATED, rate=FULL.rate)
    rows = [(FULL, NEWS), (compensated, NEWS), (compensated, replace(NEWS, samples=2080))]
    rows += [(TAIL_COMPENSATED, NEWS), (TAIL_COMPENSATED, replace(NEWS, samples=2640))]
    lines = [["layers", "method", "steps", "runs", "accuracy", "points over full depth", "training"]]
    timed = [
        {key: run for key, run in setting.runs(task, 15).items() if run["train_seconds"]} for setting, task in rows
    ]
    for (setting, task), runs in zip(rows, timed, strict=True):
        depth, seconds = next(iter(runs.values()))["depth"], f"{mean(runs, 'train_seconds'):.0f} s"
        rate, over = f"{setting.rate:.0e}".replace("e-0", "e-"), "" if runs is timed[0] else points(runs, timed[0])
        title = f"{setting.title.split(', lr')[0]}, lr {rate}"
        steps = str(task.samples // BATCH_SIZE)
        lines.append([depth, title, steps, str(len(runs)), interval(runs), over, seconds])
    return table(*lines)


def machines() -> str:
    """How far runs of the same settings and seed on two machines are apart."""
    lines = [["machines", "pairs", "mean difference", "standard deviation", "largest"]]
    settings = [(setting, 15) for setting in (FULL, FULL_HIGH)]
    settings += [(setting, depth) for setting in (*PROGRESSIVE, *CONTROLS) for depth in DEPTHS]
    for one, other in (("NVIDIA H100 80GB HBM3", "NVIDIA H200"), ("NVIDIA H100 80GB HBM3", "AMD EPYC")):
        found = []
        for task in (NEWS, MEDICINE):
            for setting, depth in settings:
                runs = setting.runs(task, depth)
                shared = [seed for machine, seed in runs if machine == one and (other, seed) in runs]
                found += [100 * (accuracy(runs[one, seed]) - accuracy(runs[other, seed])) for seed in shared]
        spread, largest = statistics.pstdev(found), max(map(abs, found))
        lines.append(
            [f"{one}, {other}", str(len(found)), f"{statistics.fmean(found):+.1f}", f"{spread:.1f}", f"{largest:.1f}"]
        )
    return table(*lines)


TABLES = {
    "summary": summary,
    "headline": headline,
    "by_hand": by_hand,
    "news": lambda: controls(NEWS),
    "medicine": lambda: controls(MEDICINE),
    "law": lambda: controls(LAW),
    "law_short": lambda: controls(LAW_SHORT),
    "longer": longer,
    "forgotten": forgotten,
    "compensation": compensation,
    "scored_as_dropped": scored_as_dropped,
    "one_setting": one_setting,
    "every_cell": lambda: every_cell(DEFAULT_TASKS, DEPTHS),
    "every_longer_cell": lambda: every_cell(LONG_TASKS, DEPTHS[1:]),
    "one_setting_in_time": one_setting_in_time,
    "equal_time": equal_time,
    "schedule": schedule,
    "machines": machines,
    "speeds": lambda: table(*inference_table.speeds("smollm2-135m")),
    "halves": lambda: table(*inference_table.halves("smollm2-135m")),
    "halves_1b": lambda: table(*inference_table.halves("llama-1.1b")),
    "fewer_tokens_speeds": lambda: table(*inference_table.fewer_tokens("smollm2-135m, 16384 tokens")),
    "fewer_tokens": fewer_tokens,
    "sublayers": sublayers,
    "lora": lora,
    "frontier": lambda: table(*frontier_table.lines()),
    "second_model": lambda: table(*other_models.lines("gemma", rises=False)),
    "third_model": lambda: table(*other_models.lines("qwen", rises=True)),
}


def render(page: str) -> str:
    """Return the page with its tables filled."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
    frontier_table.draw()
