"""Which patients and slides of the demo cohort are out of the ordinary."""

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "truncated", "blank", "no_mpp"]

SEVERAL_SLIDES = {0: 2, 2: 3}
BAD_SLIDES: dict[int, State] = {1: "truncated", 3: "blank", 4: "no_mpp"}
WITHOUT_OMICS = 5
WITHOUT_ENDPOINT = 6
WITHOUT_AGE = 7
PEN_COLOURS = ("blue", "green", "black", "red")


@dataclass(frozen=True)
class SlidePlan:
    """One slide to make: whose it is, what is wrong with it and what happened to the glass."""

    slide_id: str
    patient: int
    section: int
    state: State
    pen: str | None = None
    folded: bool = False
    blurred: bool = False


def plan_slides(patient_ids: list[str], oddities: bool) -> list[SlidePlan]:
    """Plan all slides of a cohort.

    Places are fixed by the patient's number, so that a cohort of eight patients already holds
    every bad slide, and a small cohort is the beginning of a large one. Every 17th patient has a
    second slide; pen, fold and blur recur further on.
    """
    plans = []
    for number, patient_id in enumerate(patient_ids):
        regular = 2 if number % 17 == 16 else 1
        sections = SEVERAL_SLIDES.get(number, regular) if oddities else 1
        for section in range(sections):
            plans.append(
                SlidePlan(
                    slide_id=f"{patient_id}-S{section + 1}",
                    patient=number,
                    section=section,
                    state=BAD_SLIDES.get(number, "good") if oddities else "good",
                    pen=PEN_COLOURS[number // 15 % 4] if number % 15 == 8 else None,
                    folded=number % 30 == 10,
                    blurred=number % 30 == 12,
                )
            )
    return plans
