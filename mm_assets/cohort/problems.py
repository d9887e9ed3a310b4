"""What is wrong with an input, in the words of the person who has to mend it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One finding about an input file, row, key or slide.

    Attributes
    ----------
    where
        File and row, YAML key with its line, or slide id.
    what
        What is wrong, with the offending value.
    fix
        What the reader should do about it.
    severity
        ``error`` stops the cohort before any work; ``warning`` excludes the row or slide, or
        informs, and lets the rest go on.
    """

    where: str
    what: str
    fix: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.fix})" if self.fix else "")


class CohortError(ValueError):
    """Inputs of a cohort cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


def refuse_errors(problems: Iterable[Problem]) -> None:
    """Raise `CohortError` with all problems of severity ``error``, if there are any."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise CohortError(errors)
