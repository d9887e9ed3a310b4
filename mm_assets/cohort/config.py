"""The cohort YAML's `attributes`, validated: where the data is and what to predict."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mm_assets.cohort.folders import mm_home

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
ENCODER_PATTERN = (
    r"^(resnet50|resnet50_2048|hipt|uni|virchow|virchow2|gigapath|h_optimus_0"
    r"|timm:[A-Za-z0-9_.]+)$"
)
CURVE_STEPS = 20
# Weights of HIPT that the cohort itself trains.
COHORT_WEIGHTS = "cohort"
LauncherName = Literal["local", "sagemaker"]
SLIDE_ID_PATTERN = re.compile(r"^[A-Za-z0-9._-]+$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SlidesConfig(_Strict):
    """Where the slides are: a folder or `s3://` prefix, with a manifest or a patient pattern."""

    root: str = Field(description="Folder or s3:// prefix under which every slide lies.")
    manifest: str | None = Field(
        None,
        description="CSV with slide_id, patient_id, path (relative to root), optional site, mpp.",
    )
    patient_pattern: str = Field(
        r"^(TCGA-[A-Za-z0-9]{2}-[A-Za-z0-9]{4})|^(.+)$",
        description="Without a manifest: the first matching group of the file stem is the patient.",
    )

    deidentify: Literal["none", "copy"] = Field(
        "none",
        description="`copy`: SVS and generic TIFF slides are rewritten into the store without "
        "label, macro image and identifying header fields, later stages read only the copy, and "
        "slides of other formats are refused. `none`: slides are read where they are.",
    )

    @field_validator("patient_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        if re.compile(pattern).groups < 1:
            raise ValueError("needs at least one group, which captures the patient id")
        return pattern


class ClinicalConfig(_Strict):
    """The clinical table: one row a patient (several identical rows a patient are merged)."""

    table: str = Field(description="CSV, or a zip with one CSV, or a cBioPortal study folder.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our name -> the table's name, e.g. {patient_id: case_id, sex: is_female}.",
    )
    covariates: list[str] | None = Field(
        None, description="Columns models may use. Default: those of age, sex that exist."
    )


class OmicsConfig(_Strict):
    """Omics tables: a cBioPortal study folder or a PORPOISE-style wide table."""

    kind: Literal["cbioportal", "wide"]
    path: str
    patient_id: str = Field("case_id", description="Patient column of a wide table.")


class EncoderConfig(_Strict):
    """A tile encoder and its weights."""

    encoder: str = Field(
        "resnet50",
        pattern=ENCODER_PATTERN,
        description="`resnet50`, `resnet50_2048`, `hipt`, and with the extra `foundation` `uni`, "
        "`virchow`, `virchow2`, `gigapath`, `h_optimus_0` or `timm:<model>`; see `mm encoders`.",
    )
    weights: str = Field(
        "imagenet",
        description="`imagenet`; the path or `s3://` address of a checkpoint or of a folder as "
        "published; `hub` (foundation models, downloaded with your own token); or `random:<seed>` "
        "(demo only).",
    )


class FurtherEncoder(EncoderConfig):
    """One more encoder, fed by the same pass over the pixels: asset `tile_embeddings_<name>`."""

    name: str = Field(pattern=NAME_PATTERN)


class ImagingConfig(EncoderConfig):
    """At which resolution tiles are cut and which encoders embed them."""

    mpp: float = Field(0.5, gt=0.05, le=20, description="Micrometres per pixel of the tiles.")
    tile_px: int = Field(256, ge=32, le=2048)
    region_px: int = Field(4096, ge=64, le=16384)
    min_tissue: float = Field(0.5, ge=0, le=1, description="Least tissue fraction of a kept tile.")
    also: list[FurtherEncoder] = Field(
        default_factory=list, description="Further encoders of the tiles."
    )

    @field_validator("also")
    @classmethod
    def _encoders_differ(cls, also: list[FurtherEncoder]) -> list[FurtherEncoder]:
        names = [further.name for further in also]
        if len(set(names)) < len(names):
            raise ValueError(f"encoder names must differ, found {names}")
        return also

    @model_validator(mode="after")
    def _regions_hold_whole_tiles(self) -> "ImagingConfig":
        if self.region_px % self.tile_px:
            raise ValueError("region_px must be a multiple of tile_px")
        return self


class SelectionConfig(_Strict):
    """Which tiles the extrema are taken over: those that positive-unlabeled learning keeps."""

    method: Literal["none", "naive", "elkan_noto", "nnpu"] = Field(
        "nnpu", description="`none` keeps every tile and makes no scorer."
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the training patients' tiles to keep; null: by the estimated prior.",
    )


class NucleiConfig(_Strict):
    """Nuclei are looked for; they are embedded by the encoder of the tiles."""

    tiles: int | None = Field(
        None,
        ge=1,
        description="Tiles of each slide, drawn at random, in which to look; null: all.",
    )


class NetworkConfig(_Strict):
    """How long a network of attention is trained."""

    epochs: int = Field(20, ge=1)
    early_stopping: bool = Field(
        False,
        description="Whether an inner fifth of the training patients says which epoch is best; "
        "else the last epoch counts, as published.",
    )


class HiptConfig(NetworkConfig):
    """HIPT: tiles and regions embedded by two transformers, and attention over regions."""

    tile_weights: str = Field(
        description="ViT-256: path or `s3://` address of the published checkpoint or of a state "
        "dict, `cohort` (as pre-trained on this cohort by the section `ssl`), or `random:<seed>` "
        "(demo only)."
    )
    region_weights: str = Field(description="ViT-4K, likewise.")


class _DinoConfig(_Strict):
    """Pre-training of one of HIPT's transformers without labels, by DINO."""

    epochs: int = Field(100, ge=1)
    batch: int = Field(256, ge=2, description="Pictures of a step, over all GPUs.")
    accumulate: int = Field(1, ge=1, description="Parts in which a step is computed.")
    each: int = Field(1000, ge=1, description="Pictures drawn of every slide in an epoch, at most.")
    local: int = Field(8, ge=0, description="Small crops of a picture, beside two large ones.")
    rate: float = Field(5e-4, gt=0, description="Learning rate for 256 pictures a step.")
    momentum: float = Field(0.996, ge=0, le=1, description="Of the teacher at the start.")
    temperature: float = Field(0.04, gt=0, description="Of the teacher.")
    prototypes: int = Field(65_536, ge=2)
    hidden: int = Field(2048, ge=1, description="Width of the head's inner layers.")

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError("batch must be a multiple of accumulate")
        return self


class TileDinoConfig(_DinoConfig):
    """Pre-training of the transformer of tiles; the defaults are the published setting."""

    width: int = Field(384, ge=6, multiple_of=6)
    depth: int = Field(12, ge=1)
    global_px: int = Field(224, ge=16, multiple_of=16, description="Edge of the large crops.")
    local_px: int = Field(96, ge=16, multiple_of=16, description="Edge of the small crops.")
    colour: float = Field(
        1.0, ge=0, le=2, description="How strongly the crops' colours are changed."
    )


class RegionDinoConfig(_DinoConfig):
    """Pre-training of the transformer of regions; the defaults are the published setting."""

    width: int = Field(192, ge=6, multiple_of=6)
    depth: int = Field(6, ge=1)
    global_tiles: int = Field(14, ge=1, description="Edge of the large crops, in tiles.")
    local_tiles: int = Field(6, ge=1, description="Edge of the small crops, in tiles.")


class SslConfig(_Strict):
    """Self-supervised pre-training of HIPT's levels whose weights are `cohort`."""

    tiles: TileDinoConfig = TileDinoConfig()
    regions: RegionDinoConfig = RegionDinoConfig()
    exclude_folds: dict[str, list[int]] = Field(
        default_factory=dict,
        description="Task -> folds of its first repeat whose test patients are left out, so that "
        "results on these folds owe nothing to pictures of their patients.",
    )


class PorpoiseConfig(NetworkConfig):
    """Networks of attention over tiles, of omics, and of both fused, for every task."""

    models: list[Literal["amil", "snn", "mmf"]] = Field(
        ["amil", "snn", "mmf"],
        min_length=1,
        description="Slides, omics, both; those that the cohort has no inputs for are left out.",
    )
    encoders: list[str] = Field(
        default_factory=list,
        description="Further encoders, by their name in `imaging.also` or `hipt`, on whose tiles "
        "`amil` is trained too, so that the report compares encoders.",
    )

    @model_validator(mode="after")
    def _slides_are_read(self) -> "PorpoiseConfig":
        if self.encoders and "amil" not in self.models:
            raise ValueError("encoders are compared by the network amil: add it to models")
        if len(set(self.encoders)) < len(self.encoders):
            raise ValueError(f"encoders must differ, found {self.encoders}")
        return self


class _TaskBase(_Strict):
    name: str = Field(pattern=NAME_PATTERN)
    without_genes: list[str] = Field(
        default_factory=list, description="Report the model without these genes too."
    )


class ClassificationTask(_TaskBase):
    """Predict a class label."""

    kind: Literal["classification"]
    column: str
    classes: list[str] = Field(min_length=2)


class SurvivalTask(_TaskBase):
    """Predict time to an event under censoring."""

    kind: Literal["survival"]
    time: str = Field(description="Months of follow-up.")
    event: str | None = Field(None, description="Column that is 1 when the event was observed.")
    censored: str | None = Field(None, description="Column that is 1 when censored.")
    horizons: list[Annotated[float, Field(gt=0)]] = Field(
        [12.0, 36.0, 60.0], min_length=1, description="Months at which to evaluate."
    )

    @model_validator(mode="after")
    def _one_event_column(self) -> "SurvivalTask":
        if (self.event is None) == (self.censored is None):
            raise ValueError("name exactly one of `event` and `censored`")
        return self

    @property
    def prediction_months(self) -> tuple[float, ...]:
        """Months at which survival is predicted out of fold: the horizons and, to integrate over
        time, twenty steps up to the last.
        """
        last = max(self.horizons)
        steps = [round(last * step / CURVE_STEPS, 6) for step in range(1, CURVE_STEPS + 1)]
        return tuple(sorted({*self.horizons, *steps}))


Task = Annotated[ClassificationTask | SurvivalTask, Field(discriminator="kind")]


class LearningCurveConfig(_Strict):
    """How results grow with the cohort: models fitted to part of the training patients."""

    shares: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5, 0.75], min_length=1, description="Shares of every fold's training patients."
    )
    draws: int = Field(2, ge=1, le=20, description="Random draws of patients for each share.")


class EvaluationConfig(_Strict):
    """How results are estimated; every figure is out-of-fold."""

    folds: int = Field(5, ge=2, le=20)
    repeats: int = Field(1, ge=1, le=50)
    preserve_sites: bool = True
    splits: str | None = Field(None, description="Folder of given folds: splits_<k>.csv.")
    seed: int = 0
    bootstrap: int = Field(1000, ge=100)
    omics_features: int | None = Field(
        600, ge=1, description="Features kept by the in-fold univariate filter; null keeps all."
    )
    compare: list[Literal["levels", "selection", "clinical", "filters"]] = Field(
        ["selection"],
        description="Options of HEEC that the report compares, beside each modality alone: levels "
        "one by one, without selection, how covariates enter, sizes of the filters.",
    )
    promotion_margin: float = Field(
        0.02,
        ge=0,
        le=1,
        description="A new version of a model becomes champion when the interval of its difference "
        "from the present one, in C-index or AUC, excludes a loss of this size.",
    )
    learning_curve: LearningCurveConfig | None = Field(
        None,
        description="Results by number of training patients, of HEEC without selection and of the "
        "clinical baseline; left out unless given (`{}` will do), for it multiplies the fits.",
    )
    attainable: str | None = Field(
        None, description="Synthetic cohorts: JSON of task -> best attainable metric."
    )


class TuningConfig(_Strict):
    """Search for HEEC's settings on inner folds, in every fold and for every variant."""

    trials: int = Field(
        0, ge=0, le=1000, description="Settings tried in each search; below 2: none is made."
    )
    backend: Literal["optuna", "sagemaker"] = Field(
        "optuna",
        description="Who searches: Optuna beside the training, or tuning jobs of SageMaker in an "
        "asset of their own, `heec_settings_T`.",
    )
    parallel: int = Field(
        4, ge=1, le=100, description="Trials of a search that SageMaker runs at once."
    )
    seconds: float | None = Field(
        1800,
        gt=0,
        description="Optuna's time for all searches of a task, shared evenly; null: no limit. "
        "Results that it cut short differ between machines.",
    )


class HeecConfig(_Strict):
    """Settings of HEEC."""

    tuning: TuningConfig = TuningConfig()


class RefreshConfig(_Strict):
    """When models and reports are made anew, and whether new slides are looked for."""

    cron: str | None = None
    sensor: bool = False
    sensor_seconds: int = Field(60, ge=5)


class ComputeOverride(_Strict):
    """Per-stage change to the declared compute needs."""

    gpu: int | None = Field(None, ge=0)
    cpu: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    gpu_kind: str | None = None
    chunk: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0, description="Time limit of a job elsewhere.")
    launcher: LauncherName | None = Field(
        None,
        description="Where the stage's work on slides is done: `local` or `sagemaker`; by default "
        "as the variable `MM_LAUNCHER` says, else `local`.",
    )


class CohortConfig(_Strict):
    """All attributes of one cohort.

    Paths may hold `~` and `${VARIABLES}` (`${MM_HOME}` is always known); relative paths start at
    the folder of the YAML file. `resolve_paths` makes them absolute.
    """

    cohort: str = Field(pattern=NAME_PATTERN)
    tasks: list[Task] = Field(min_length=1)
    clinical: ClinicalConfig
    slides: SlidesConfig | None = None
    omics: OmicsConfig | None = None
    imaging: ImagingConfig = ImagingConfig()
    nuclei: NucleiConfig | None = Field(
        None, description="Nucleus graphs of the slides; left out unless given (`{}` will do)."
    )
    selection: SelectionConfig = SelectionConfig()
    hipt: HiptConfig | None = Field(None, description="HIPT; left out unless given.")
    ssl: SslConfig = SslConfig()
    porpoise: PorpoiseConfig | None = Field(
        None, description="PORPOISE's networks; left out unless given (`{}` will do)."
    )
    heec: HeecConfig = HeecConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    refresh: RefreshConfig = RefreshConfig()
    compute: dict[str, ComputeOverride] = Field(default_factory=dict)
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Instance type -> price of an hour, for estimates."
    )
    optional: bool = Field(
        False, description="No assets instead of an error while the data do not exist."
    )

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"task names must differ, found {names}")
        return tasks

    @property
    def absent(self) -> bool:
        """Whether this is an optional cohort whose data do not exist."""
        return self.optional and not Path(self.clinical.table).exists()

    @model_validator(mode="after")
    def _hipt_fits(self) -> "CohortConfig":
        if self.hipt is None:
            return self
        if self.imaging.tile_px % 16:
            raise ValueError("hipt reads tiles whose edge is a multiple of 16: change tile_px")
        if any(further.name == "hipt" for further in self.imaging.also):
            raise ValueError("the section hipt embeds tiles itself: rename the encoder hipt")
        if any(task.name == "embeddings" for task in self.tasks):
            raise ValueError("hipt_embeddings is an asset of HIPT: rename the task embeddings")
        return self

    @model_validator(mode="after")
    def _compared_encoders_exist(self) -> "CohortConfig":
        known = {further.name for further in self.imaging.also} | ({"hipt"} if self.hipt else set())
        unknown = set(self.porpoise.encoders if self.porpoise else ()) - known
        if unknown:
            raise ValueError(
                f"porpoise.encoders names no further encoder of the cohort: {sorted(unknown)}; "
                f"there are {sorted(known)}"
            )
        return self

    @model_validator(mode="after")
    def _excluded_folds_exist(self) -> "CohortConfig":
        unknown = set(self.ssl.exclude_folds) - {task.name for task in self.tasks}
        if unknown:
            raise ValueError(f"ssl.exclude_folds names no task of the cohort: {sorted(unknown)}")
        return self

    def resolve_paths(self, base: Path) -> "CohortConfig":
        """The same configuration with every path absolute, relative ones against `base`."""
        data = self.model_dump()
        for section, keys in {
            "slides": ("root", "manifest"),
            "clinical": ("table",),
            "omics": ("path",),
            "evaluation": ("splits", "attainable"),
        }.items():
            for key in keys:
                if data.get(section) and data[section][key]:
                    data[section][key] = resolve_path(data[section][key], base)
        for encoder in (data["imaging"], *data["imaging"]["also"]):
            encoder["weights"] = _resolve_weights(encoder["weights"], base)
        for key in ("tile_weights", "region_weights") if self.hipt else ():
            data["hipt"][key] = _resolve_weights(data["hipt"][key], base)
        return CohortConfig.model_validate(data)


def is_path(weights: str) -> bool:
    """Whether `weights` of an encoder names a file or folder."""
    return weights not in ("imagenet", "hub", COHORT_WEIGHTS) and not weights.startswith("random:")


def _resolve_weights(weights: str, base: Path) -> str:
    return resolve_path(weights, base) if is_path(weights) else weights


def resolve_path(path: str, base: Path) -> str:
    """Absolute path or `s3://` address, with `~` and `${VARIABLES}` expanded."""
    expanded = os.path.expandvars(path.replace("${MM_HOME}", str(mm_home())))
    if "://" in expanded:
        return expanded
    return str((base / Path(expanded).expanduser()).absolute())
