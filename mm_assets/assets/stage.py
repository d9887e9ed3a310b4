"""A stage: one step of a cohort's asset graph, described without Dagster.

The Dagster assets, the command line's walk and the refresh sensor are all derived from the same
stages, so they cannot disagree about order, inputs or code versions.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dagster as dg

from mm_assets.assets.compute import Compute
from mm_assets.assets.log import Log
from mm_assets.cohort.config import CohortConfig
from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking

Group = Literal["imaging", "omics", "models", "reports"]


@dataclass(frozen=True)
class Workspace:
    """The resources a stage works with."""

    config: CohortConfig
    store: ArtefactStore
    tracking: Tracking
    log: Log

    @property
    def receipts(self) -> Receipts:
        """Receipts of this workspace's store."""
        return Receipts(self.store)

    def __reduce__(self) -> tuple[Any, ...]:
        # Dagster's resources and loggers belong to a run and cannot be sent to another process.
        return _detached, (self.config, self.store.model_dump(), self.tracking.model_dump())


def _detached(
    config: CohortConfig, store: Mapping[str, Any], tracking: Mapping[str, Any]
) -> Workspace:
    log = logging.getLogger("mm_assets")
    return Workspace(config, ArtefactStore(**store), Tracking(**tracking), log)


@dataclass(frozen=True)
class Check:
    """Outcome of one asset check; a failed `inputs_ok` stops what depends on the asset."""

    name: str
    passed: bool
    note: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Produced:
    """What a stage made of one slide, or of the cohort, for one asset.

    Attributes
    ----------
    outputs
        Part or extension -> content digest, as the store returned it.
    metadata
        Numbers and short texts for the UI and the receipt; values that Dagster renders richly
        (markdown, tables, URLs) are passed as Dagster metadata values and stay out of receipts.
    seconds
        Time of the machines that made it elsewhere; None: it was made here, all the time.
    """

    outputs: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """One unit of work: a slide of a per-slide stage, or a whole-cohort stage.

    Attributes
    ----------
    name
        Slide id, or ``cohort``.
    provenance
        Asset name -> provenance to store with that asset's artefacts.
    upstream
        Upstream asset -> slide id or ``cohort`` -> receipt.
    """

    workspace: Workspace
    name: str
    provenance: Mapping[str, Provenance]
    upstream: Mapping[str, Mapping[str, Receipt]]
    dagster_run_id: str

    def ref(self, asset: str, extension: str, name: str | None = None) -> ArtefactRef:
        """Address of an artefact of this cohort, of this job's slide unless `name` is given."""
        return ArtefactRef(self.workspace.config.cohort, asset, name or self.name, extension)


SlideWork = Callable[[Job], Mapping[str, Produced]]


@dataclass(frozen=True)
class TwoSteps:
    """Work on a slide whose first step is done while the slide before is computed.

    Attributes
    ----------
    prepare
        Opens what the slide needs (fetched, opened and planned in a thread of its own) and gives
        the function that computes; what it opened is closed when the slide is done.
    """

    prepare: Callable[[Job], AbstractContextManager[Callable[[], Mapping[str, Produced]]]]


SlideWorker = SlideWork | TwoSteps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Declaration shared by both kinds of stage.

    Attributes
    ----------
    outputs
        Names of the assets made in one go, the first also names the stage.
    upstream
        Assets read; per-slide assets are read for the same slide by per-slide stages, for all
        slides by cohort stages. Whole-cohort assets are read by both.
    code_version
        Changed by hand when the meaning of the output changes.
    parameters
        Whatever of the configuration changes the output.
    sources
        Name -> digest, stamp or version of what the stage reads outside the store: files, models.
    after
        Assets that settle what is read without being read, such as which version of a model is
        champion: where both are made, they are made before.
    on_refresh
        Whether the stage waits for the cohort's refresh (labels or whole-cohort inputs).
    """

    outputs: tuple[str, ...]
    upstream: tuple[str, ...]
    group: Group
    code_version: str
    description: str
    kinds: frozenset[str] = frozenset()
    compute: Compute = field(default_factory=Compute)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    on_refresh: bool = True

    @property
    def name(self) -> str:
        """The stage's name: that of its first asset."""
        return self.outputs[0]

    def compute_for(self, config: CohortConfig) -> Compute:
        """What the stage needs, as the cohort's YAML changes it."""
        return self.compute.overridden(config.compute.get(self.name))


@dataclass(frozen=True, kw_only=True)
class SlideStage(Stage):
    """A stage that runs slide by slide.

    Attributes
    ----------
    worker
        Opens what is shared by a chunk of slides (an encoder, say) and yields the function that
        does one slide, or its two steps.
    patient_upstream
        Those of `upstream` that are read for all slides of the slide's patient, as far as made.
    sources
        As of `Stage`, by slide. Importable by name where the stage is isolated.
    own_parameters
        Asset -> whatever of the configuration changes this asset alone.
    weights
        Asset -> setting -> encoder weights that it is made with: of files the content is a source.
    isolated
        Whether decoders open files in it: it then runs in a child process, for which `worker` must
        be importable by name.
    """

    worker: Callable[[Workspace], AbstractContextManager[SlideWorker]]
    sources: Callable[[Workspace], Mapping[str, Mapping[str, str]]] | None = None
    slides_at_once: int = 1
    patient_upstream: tuple[str, ...] = ()
    own_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    isolated: bool = False


@dataclass(frozen=True)
class Trials:
    """Trials of a stage that searches by jobs of a tuning service, begun beside Dagster.

    Attributes
    ----------
    judge
        How good the hyper-parameters are that a trial was given; higher is better.
    count
        How many there will be; None as long as the tables that say so are not made.
    """

    judge: Callable[[Job, Mapping[str, str]], float]
    count: Callable[[Workspace], int | None]


@dataclass(frozen=True, kw_only=True)
class CohortStage(Stage):
    """A stage that runs once for the cohort.

    Attributes
    ----------
    elsewhere
        As which kind of job another machine can do it, where all that it reads lies in the store;
        None: it is always done beside Dagster.
    trials
        Of stages that search by a tuning service; `compute` is then what a trial needs.
    """

    run: Callable[[Job], Produced]
    trials: Trials | None = None
    elsewhere: Literal["training", "processing"] | None = None
    checks: tuple[str, ...] = ()
    sources: Callable[[Workspace], Mapping[str, str]] | None = None

    def compute_for(self, config: CohortConfig) -> Compute:
        """What the stage needs, as the cohort's YAML changes it.

        Raises
        ------
        ValueError
            When the YAML wants it where it cannot be made.
        """
        compute = super().compute_for(config)
        if self.elsewhere:
            return compute
        only, why = "local", f"what {self.name} reads is on this machine"
        if self.trials:
            only, why = "sagemaker", "its trials are tuning jobs of SageMaker"
        override = config.compute.get(self.name)
        if override and override.launcher not in (None, only):
            raise ValueError(
                f"compute.{self.name}.launcher: {why}: it cannot be made by {override.launcher}"
            )
        return replace(compute, launcher=only)


def asset_key(cohort: str, asset: str) -> dg.AssetKey:
    """Dagster key of a cohort's asset."""
    return dg.AssetKey([cohort, asset])


def asset_spec(
    cohort: str, stage: Stage, asset: str, automation: dg.AutomationCondition[Any] | None
) -> dg.AssetSpec:
    """Dagster's specification of one of a stage's assets."""
    return dg.AssetSpec(
        asset_key(cohort, asset),
        deps=[asset_key(cohort, upstream) for upstream in (*stage.upstream, *stage.after)],
        description=stage.description,
        group_name=f"{cohort}_{stage.group}",
        code_version=stage.code_version,
        kinds=set(stage.kinds),
        skippable=isinstance(stage, SlideStage),
        automation_condition=automation,
    )


def slide_partitions(cohort: str) -> dg.DynamicPartitionsDefinition:
    """The cohort's slides as Dagster partitions."""
    return dg.DynamicPartitionsDefinition(name=f"{cohort}_slides")


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `metadata` that belongs in a receipt: JSON scalars only."""
    return {k: v for k, v in metadata.items() if isinstance(v, str | int | float | bool)}
