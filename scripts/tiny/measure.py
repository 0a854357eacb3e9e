"""What a trained embedded model answers on the miniature, method by method: the numbers of its card."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from configs.build import instance, typed
from data import miniature
from data.base import Sample, Task
from engine.arm import Plan
from engine.generate import Question, Stop, answer
from engine.load import load
from engine.model import Model
from engine.prompt import PromptRule, encode
from engine.spec import ModelSpec
from eval.longbench import postprocess, score_sample
from methods.base import Method
from methods.budget import parse_budget, resolve

CONFIGS = Path(__file__).parents[2] / "configs"
# (method, budget); a method of kind "none" has no budget.
ARMS = (
    ("full", "1.0"),
    ("oracle", "0.1"),
    ("oracle", "0.02"),
    ("pqcache", "0.1"),
    ("h2o", "0.1"),
    ("window", "0.1"),
    ("random", "0.1"),
)
SINK = 4
FILE = "measured.jsonl"


@dataclass(frozen=True)
class Cell:
    """One answer. score: the task's metric, 0-100; exact: whether every value was right."""

    task: str
    source: str
    length: int
    sample: str
    method: str
    budget: str
    score: float
    exact: bool


def measure(model_folder: Path, out: Path, sources: Sequence[str], limit: int, arms: Sequence[tuple[str, str]]) -> None:
    """Ask `limit` rows of each length, task and source; one line an answer in `out`; what stands there is kept."""
    done = {(cell.source, cell.task) for cell in cells(out)} if out.exists() else set()
    model = embedded(model_folder)
    with ExitStack() as stack, out.open("a", encoding="utf-8") as file:
        methods = {name: instance(_yaml("method", name), "method") for name, _ in arms}
        for method in methods.values():
            stack.enter_context(method.running())
        for source in sources:
            for name in miniature.FORMS:
                if (source, name) not in done:
                    task = small(name)
                    # A task in one piece: a part of one would pass for all of it.
                    lines = [
                        json.dumps(asdict(cell)) + "\n"
                        for length, sample in rows(task, source, limit)
                        for cell in _asked(model, task, source, length, sample, methods, arms)
                    ]
                    file.write("".join(lines))
                    file.flush()
                    print(_summary(list(cells(out)), source, name), flush=True)


def embedded(folder: Path) -> Model:
    """The model in that folder, as `configs/model/tiny.yaml` asks it."""
    spec = typed(ModelSpec, {**_yaml("model", "tiny"), "path": str(folder.resolve())}, "model")
    return load(spec, "cpu", "float32", "sdpa", 16384, 0)


def small(name: str) -> Task:
    """A task as it is asked on miniature rows."""
    task: Task = typed(Task, _yaml("task", name), "task").small()
    return task


def rows(task: Task, source: str, limit: int) -> Iterator[tuple[int, Sample]]:
    """The first `limit` rows of each length."""
    held = miniature.read(task.name, source).samples
    for length in dict.fromkeys(miniature.LENGTHS):
        of_length = [s for s, n in zip(held, miniature.LENGTHS, strict=True) if n == length]
        yield from ((length, sample) for sample in of_length[:limit])


def _asked(
    model: Model,
    task: Task,
    source: str,
    length: int,
    sample: Sample,
    methods: dict[str, Method],
    arms: Sequence[tuple[str, str]],
) -> Iterator[Cell]:
    text = task.prompt.format(context=sample.context, input=sample.input)
    prompt = encode(model.tokenizer, text, PromptRule(4608, True, False, {}), None)
    plans = []
    for name, budget in arms:
        method = methods[name]
        rule = parse_budget(budget)
        held = resolve(rule, method, len(prompt.ids), SINK, 0.5, 0, model.bytes_per_token)
        plans.append(Plan(f"{name} {budget}", method, None if method.kind == "none" else held))
    seed = zlib.crc32(f"0/{sample.id}".encode())  # that of `run.py` with its seed 0
    question = Question(prompt.ids, seed, Stop(task.max_new_tokens, model.stop_tokens))
    for (name, budget), reply in zip(arms, answer(model, question, plans), strict=True):
        said = str(model.tokenizer.decode(list(reply.tokens), skip_special_tokens=True))
        score = 100 * score_sample(task, said, sample.answers, sample.all_classes)
        exact = postprocess(task, said) in sample.answers
        yield Cell(task.name, source, length, sample.id, name, budget, score, exact)


def cells(path: Path) -> Iterator[Cell]:
    """The answers of a file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield Cell(**json.loads(line))


def _summary(held: Sequence[Cell], source: str, task: str) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for cell in held:
        if (cell.source, cell.task) == (source, task):
            found.setdefault((cell.method, cell.budget), []).append(cell.score)
    means = "  ".join(f"{name} {budget} {sum(s) / len(s):5.1f}" for (name, budget), s in found.items())
    return f"{source:<15} {task:<21} {means}"


def _yaml(group: str, name: str) -> dict[str, object]:
    node: dict[str, object] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return node
