"""How a row of RULER is written and counted, and how the largest that fits is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.base import Task
from data.made import Ruler
from data.tokens import Cut


@dataclass(frozen=True)
class Made:
    """One row before it is written: what `{context}` and `{input}` become, and what must be named."""

    context: str
    query: str
    answers: tuple[str, ...]


# number of units of haystack -> a row; each call draws other random numbers
Generate = Callable[[int], Made]


@dataclass(frozen=True)
class Layout:
    """The text of a task's rows for one tokenizer."""

    task: Task
    cut: Cut

    @property
    def ruler(self) -> Ruler:
        assert self.task.ruler is not None
        return self.task.ruler

    def check(self) -> None:
        """Raise ValueError for a template with names in braces that no row has."""
        try:
            self.text(Made("", "", ()))
        except (ValueError, LookupError) as error:
            known = "{context} and {input}, task.answer_prefix {input}"
            raise ValueError(f"task.prompt may have {known} and no others in braces: {error!r}") from error

    def text(self, made: Made) -> str:
        """Prompt and answer prefix, without a chat template's wrapper."""
        return self.task.asked(made.context, made.query) + self.task.begun(made.query)

    def size(self, made: Made) -> int:
        """Tokens of prompt, answer prefix and answer."""
        return self.task.max_new_tokens + len(self.cut(self.text(made)))

    def largest(
        self, generate: Generate, unit: int, first: int = 0, room: int = 3, cap: int | None = None, more: int = 0
    ) -> int:
        """The most units that fit, by bisection over fresh rows; `unit` if none is found.

        first: units of the row that says how many tokens one takes, else `unit`. room: how many times what it says is
        tried. cap: the most units that there are. more: tokens of what is added to the row later.
        """
        first = first or unit
        tokens_each = len(self.cut(self.text(generate(first)))) / first
        low, high, best = unit, max(int(self.ruler.length / tokens_each * room), 2 * unit), unit
        high = min(high, cap or high)
        while low <= high:
            middle = (low + high) // 2
            if self.size(generate(middle)) + more <= self.ruler.length:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best

    def fitting(self, generate: Generate, most: int, unit: int) -> Made:
        """A fresh row that fits, a unit less at each try. Raises ValueError where even one unit is too long."""
        for num_units in range(most, unit - 1, -unit):
            made = generate(num_units)
            if self.size(made) <= self.ruler.length:
                return made
        raise ValueError(
            f"task.ruler.length={self.ruler.length} is too short for one unit of haystack; give a longer one"
        )
