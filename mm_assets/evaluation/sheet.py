"""The page under every plot: title above, protocol and weights below, sizes in inches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from mm_assets.evaluation.descriptions import weights_stamp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ImageKind = Literal["svg", "png", "small"]

# Okabe and Ito's colours, distinguishable with every common colour vision deficiency.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
INK, GREY, FAINT = "#222222", "#666666", "#DDDDDD"
_WARNING = "#B00020"
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_DPI = {"png": 160, "small": 80}
_SMALL_PALETTE = 128
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "xtick.color": GREY,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # Names and captions with a $ are no formulas.
    "text.parse_math": False,
    # The same input gives the same bytes.
    "svg.hashsalt": "mm_assets",
}
_WIDTH, _HEADER, _LINE, _AXIS_LABELS = 7.4, 0.68, 0.135, 0.62
_CHARACTERS = 145
_PANELS_A_ROW = 3


Plot = TypeVar("Plot", bound=Callable[..., bytes])


def styled(plot: Plot) -> Plot:
    """Draw with this module's style and leave matplotlib's settings as they were."""

    @wraps(plot)
    def drawn(*args: Any, **options: Any) -> bytes:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return plot(*args, **options)

    return cast(Plot, drawn)


@dataclass(frozen=True)
class PlotContext:
    """What all plots of one task share.

    Attributes
    ----------
    subject
        Cohort and task, for titles.
    models
        All models of the task in order: a model has the same colour in every plot.
    protocol
        Folds and repeats in words, below every plot.
    weights
        Image encoder and weights (``resnet50 imagenet``), or None without images.
    classes
        Of the endpoint; empty for survival.
    names
        Model -> name for people; models without one go by their own.
    attainable
        Metric -> best attainable value, known for synthetic cohorts.
    """

    subject: str
    models: tuple[str, ...]
    protocol: str
    weights: str | None = None
    classes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    attainable: Mapping[str, float] = field(default_factory=dict)

    def name(self, model: str) -> str:
        """Name for people."""
        return self.names.get(model, model)

    def colour(self, model: str) -> str:
        """Colour of a model."""
        return COLOURS[self.models.index(model) % len(COLOURS)]

    def marker(self, model: str) -> str:
        """Marker of a model; another one when the colours start again."""
        index = self.models.index(model)
        return _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]


class Sheet:
    """One figure: choose a layout, draw into its axes, render.

    Parameters
    ----------
    title
        What is shown, with patients and events.
    context
        Of the task.
    note
        How this plot was made, after the protocol.
    """

    def __init__(self, title: str, context: PlotContext, note: str):
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(_WIDTH, 4))
        self._title, self._context = title, context
        text = f"{context.protocol}; {note}."
        self._notes = wrap(text[:1].upper() + text[1:], _CHARACTERS)
        self._footer = _LINE * (len(self._notes) + (context.weights is not None)) + 0.12
        self._legend_below = False

    def axes(self, height: float, *, left: float, right: float) -> "Axes":
        """One plot `height` inches high with room for text on its left and right."""
        self._resize(height + _AXIS_LABELS)
        return self._add(left, self._footer + _AXIS_LABELS, _WIDTH - left - right, height)

    def stacked(self, height: float, below: float, *, left: float) -> tuple["Axes", "Axes"]:
        """A plot and, under its axis, a strip of `below` inches that shares its width."""
        self._resize(height + _AXIS_LABELS + below)
        width = _WIDTH - left - 0.25
        base = self._footer + 0.05
        upper = self._add(left, base + below + _AXIS_LABELS - 0.05, width, height)
        return upper, self._add(left, base, width, below)

    def panels(self, count: int, entries: int) -> list["Axes"]:
        """Square panels: one with the legend beside it, or rows of three with it below.

        Parameters
        ----------
        count
            Number of panels.
        entries
            Lines in the legend.
        """
        if count == 1:
            side = 3.5
            self._resize(side + _AXIS_LABELS)
            return [self._add(0.65, self._footer + _AXIS_LABELS, side, side)]
        self._legend_below = True
        legend = 0.2 * -(-entries // 2) + 0.1
        side = (_WIDTH - 0.65 - 0.1) / _PANELS_A_ROW - 0.3
        rows = -(-count // _PANELS_A_ROW)
        pitch = side + _AXIS_LABELS + 0.25
        self._resize(rows * pitch + legend)
        top = self._footer + legend + rows * pitch
        return [
            self._add(
                0.65 + (index % _PANELS_A_ROW) * (side + 0.35),
                top - (index // _PANELS_A_ROW + 1) * pitch + _AXIS_LABELS,
                side,
                side,
            )
            for index in range(count)
        ]

    def legend(self, axes: "Axes") -> None:
        """The legend of `panels`, from the entries of one of them."""
        handles, labels = axes.get_legend_handles_labels()
        if self._legend_below:
            height = self._figure.get_figheight()
            place = (0.02, (self._footer - 0.02) / height)
            self._figure.legend(handles, labels, loc="lower left", bbox_to_anchor=place, ncols=2)
        else:
            axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.04, 0.5))

    def render(self, image: ImageKind) -> bytes:
        """Add title and notes; the image's bytes, the same for the same input."""
        height = self._figure.get_figheight()
        write = self._figure.text
        write(0.015, 1 - 0.22 / height, self._title, weight="bold", size=10.5, va="center")
        write(0.015, 1 - 0.42 / height, self._context.subject, color=GREY, va="center", size=8.5)
        lines = [(line, GREY) for line in self._notes]
        if self._context.weights is not None:
            stamp = weights_stamp(self._context.weights)
            lines.append((stamp, _WARNING if "not for use" in stamp else GREY))
        for number, (line, colour) in enumerate(reversed(lines)):
            write(0.015, (0.05 + number * _LINE) / height, line, color=colour, size=7, va="bottom")
        buffer = BytesIO()
        if image == "svg":
            self._figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            metadata = {"Software": None}
            self._figure.savefig(buffer, format="png", dpi=_DPI[image], metadata=metadata)
        return _few_colours(buffer) if image == "small" else buffer.getvalue()

    def _resize(self, body: float) -> None:
        self._figure.set_size_inches(_WIDTH, _HEADER + body + self._footer)

    def _add(self, left: float, bottom: float, width: float, height: float) -> "Axes":
        total = self._figure.get_figheight()
        return self._figure.add_axes(
            (left / _WIDTH, bottom / total, width / _WIDTH, height / total)
        )


def _few_colours(png: BytesIO) -> bytes:
    """The PNG with a palette: a third of the size, and plots have few colours anyway."""
    from PIL import Image

    with Image.open(png) as image:
        reduced = image.convert("RGB").quantize(_SMALL_PALETTE, dither=Image.Dither.NONE)
    buffer = BytesIO()
    reduced.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
