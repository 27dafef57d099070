"""Settings: frozen dataclasses that are the only source of defaults. Flags, YAML and the docs derive from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from transenc.errors import InputError

BI_LOSSES = ("mse", "cosent", "angle", "kldiv", "marginmse")
CROSS_LOSSES = ("bce", "mse", "marginmse", "listnet", "ranknet", "lambda")
LIST_LOSSES = ("kldiv", "marginmse", "listnet", "ranknet", "lambda")  # of either form: they compare one query's scores
SCALES = ("raw", "quantile")
OBJECTIVES = ("simcse", "mirror", "decomposed", "tsdae", "tension")
DROPOUT_OBJECTIVES = ("simcse", "decomposed")  # the two views of a sentence differ by dropout alone
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
CRITERIA = ("cautious", "alignment", "agreement", "views", "uniformity", "rank", "previous", "cross")

Settings = TypeVar("Settings")


def _expect(ok: bool, name: str, expected: str, found: Any) -> None:
    if not ok:
        raise InputError(f"{name} must be {expected}, found {found!r}")


def _expect_positive(name: str, value: float) -> None:
    _expect(math.isfinite(value) and value > 0, name, "a positive number", value)


def _check_choices(settings: Any) -> None:
    for f in dataclasses.fields(settings):
        choices, value = f.metadata.get("choices"), getattr(settings, f.name)
        _expect(not choices or value in choices, f.name, f"one of {', '.join(choices or ())}", value)


def setting(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its help text; the command line is generated from it."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Backbone:
    """One language model in both of its forms.

    Args:
        bi: the bi-encoder to start from: a folder or a Hub id.
        cross: what the cross-encoder starts from (the paper takes the plain language model);
            None: the weights of `bi`.
        pooling: how to pool a bare Hugging Face folder (`cls`, `mean`, ...); None: what the folder says.
        weight: how much its scores count among those of several backbones, more than 0.

    Raises:
        InputError: the weight is not a positive number.

    Example:
        >>> Backbone("princeton-nlp/unsup-simcse-bert-base-uncased", cross="bert-base-uncased", pooling="cls").pooling
        'cls'
    """

    bi: str
    cross: str | None = None
    pooling: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        _expect(number and math.isfinite(self.weight) and self.weight > 0, "weight", "a positive number", self.weight)


@dataclass(frozen=True)
class TrainingSettings:
    """How one form is trained; lengths in tokens, rates per AdamW step, `warmup` as a share of the steps."""

    epochs: float = setting(1.0, "passes over the pairs (more than 0)")
    batch_size: int = setting(32, "pairs in a batch")
    learning_rate: float = setting(2e-5, "peak learning rate, linear decay")
    max_length: int = setting(64, "tokens kept: of a sentence (bi-encoder), of a pair (cross-encoder)")
    warmup: float = setting(0.0, "share of the steps with a rising learning rate, 0 to 1")
    weight_decay: float = setting(0.01, "AdamW weight decay")
    dropout: float | None = setting(None, "probability of every dropout in training, 0: off; none: the model's own")
    group_by_length: bool = setting(False, "batches of similar length: less padding, faster")

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("epochs", "learning_rate"):
            _expect_positive(name, getattr(self, name))
        _expect(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)
        _expect(self.max_length >= 3, "max_length", "3 or more", self.max_length)
        _expect(0 <= self.warmup < 1, "warmup", "at least 0 and below 1", self.warmup)
        _expect(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _expect(self.dropout is None or 0 <= self.dropout < 1, "dropout", "at least 0 and below 1", self.dropout)
        _check_choices(self)


@dataclass(frozen=True)
class BiTrainingSettings(TrainingSettings):
    """The bi-encoder stage; `mse` is the reference's loss on the cosine. See `targets` for what each loss sees."""

    loss: str = setting("cosent", "loss on the cosine and the label; kldiv, marginmse: on lists", BI_LOSSES)
    temperature: float = setting(0.05, "cosent, angle, kldiv: what the cosines are divided by")
    geometry: float = setting(0.0, "weight (up to 0.1) of keeping to another model's cosines in a batch; 0: off")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _expect_positive("temperature", self.temperature)
        _expect(0 <= self.geometry < math.inf, "geometry", "0 or more", self.geometry)


@dataclass(frozen=True)
class CrossTrainingSettings(TrainingSettings):
    """The cross-encoder stage; `bce` is the reference's loss on the logit. See `targets` for what each loss sees."""

    loss: str = setting("bce", "loss on score and label; marginmse, listnet, ranknet, lambda: on lists", CROSS_LOSSES)
    temperature: float = setting(0.05, "listnet, ranknet, lambda: what the scores are divided by")
    symmetry: float = setting(0.0, "weight of giving both orders of a pair one score; 0: off")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _expect_positive("temperature", self.temperature)
        _expect(0 <= self.symmetry < math.inf, "symmetry", "0 or more", self.symmetry)


@dataclass(frozen=True)
class BootstrapSettings(TrainingSettings):
    """How a language model becomes a bi-encoder: raw sentences, no labels, no pairs.

    `simcse`: two dropout views of a sentence against the rest of the batch (Gao et al., EMNLP 2021). `mirror`: the
    second view also loses a random span (Liu et al., EMNLP 2021). `decomposed`: the same loss in a form that small
    batches estimate with less bias (NeurIPS 2022, see `losses`). `tsdae`, `tension`: the denoising auto-encoder and
    Contrastive Tension of sentence-transformers.

    Example:
        >>> BootstrapSettings(objective="mirror").resolved_temperature
        0.04
    """

    batch_size: int = setting(64, "sentences in a batch")
    learning_rate: float = setting(3e-5, "peak learning rate, linear decay")
    max_length: int = setting(32, "tokens kept of a sentence")
    warmup: float = setting(0.1, "share of the steps with a rising learning rate, 0 to 1")
    objective: str = setting("simcse", "what the bi-encoder learns from a sentence alone", OBJECTIVES)
    temperature: float | None = setting(None, "of the contrastive objectives; none: 0.04 for mirror, 0.05 otherwise")
    mini_batch: int | None = setting(None, "GradCache (simcse, mirror): sentences passing at once; none: all")
    mask_span: int = setting(5, "mirror: characters that the second view loses, 0: none")
    memory: float = setting(0.5, "decomposed: share of a sentence's old estimate that a visit keeps, 0 to 1")
    queue: int | None = setting(
        None,
        "decomposed: past embeddings that estimate the denominator; 0: a sentence's own average over the epochs "
        "(memory); none: 1024 for one epoch, else 0",
    )
    sample: bool = setting(False, "decomposed: draw the auxiliary variable from its Gamma, not its mean")
    whiten: bool = setting(False, "at the end whiten the embeddings over the sentences (see `whitening`)")
    template: str | None = setting(None, "text around the sentence {}, ending in the mask token, which is then pooled")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        temperature = self.temperature
        _expect(temperature is None or temperature > 0, "temperature", "a positive number", temperature)
        _expect(self.mini_batch is None or self.mini_batch >= 1, "mini_batch", "1 or more", self.mini_batch)
        cached = self.mini_batch is None or self.objective in ("simcse", "mirror")
        _expect(cached, "mini_batch", f"left out with objective {self.objective} (simcse and mirror have it)",
                self.mini_batch)  # fmt: skip
        _expect(self.batch_size >= 2, "batch_size", "2 or more (a batch's other sentences are the negatives)",
                self.batch_size)  # fmt: skip
        alike = self.dropout == 0 and self.objective in DROPOUT_OBJECTIVES
        _expect(not alike, "dropout", f"above 0 with objective {self.objective} (the views differ by it)", self.dropout)
        _expect(self.mask_span >= 0, "mask_span", "0 or more", self.mask_span)
        _expect(self.queue is None or self.queue >= 0, "queue", "0 or more", self.queue)
        _expect(0 <= self.memory < 1, "memory", "at least 0 and below 1", self.memory)
        fits = self.template is None or self.template.count("{}") == 1
        _expect(fits, "template", "a text with {} once, for the sentence", self.template)

    @property
    def resolved_temperature(self) -> float:
        """The temperature that applies."""
        return self.temperature or (0.04 if self.objective == "mirror" else 0.05)

    @property
    def resolved_queue(self) -> int:
        """The queue that applies: in a single epoch no sentence is seen twice, so it has no average of its own."""
        return self.queue if self.queue is not None else 1024 if self.epochs <= 1 else 0


@dataclass(frozen=True)
class MiningSettings:
    """How pairs are found in raw text.

    Example:
        >>> MiningSettings().pairs_per_sentence
        2.0
    """

    pairs_per_sentence: float = setting(2.0, "pairs to keep, as a multiple of the sentences (or documents)")
    max_pairs: int | None = setting(None, "keep at most N pairs")
    neighbours: int = setting(10, "nearest sentences that are candidates")
    bins: int = setting(10, "bins of the score from which equally many pairs are kept, 1 or more")
    lexical: bool = setting(False, "candidates from BM25 too (needs transenc[hybrid])")
    near_duplicate: float = setting(0.98, "cosine from which two texts are the same; one of them goes")
    list_size: int = setting(0, "find lists: a query with N texts (2 or more), for losses on lists; 0: pairs")

    def __post_init__(self) -> None:
        """Check the ranges."""
        per = self.pairs_per_sentence
        _expect(math.isfinite(per) and per > 0, "pairs_per_sentence", "a positive number", per)
        _expect(self.max_pairs is None or self.max_pairs >= 2, "max_pairs", "2 or more", self.max_pairs)
        for name in ("neighbours", "bins"):
            _expect(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        _expect(0 < self.near_duplicate <= 1, "near_duplicate", "above 0, at most 1", self.near_duplicate)
        _expect(self.list_size == 0 or self.list_size >= 2, "list_size", "0, or 2 or more", self.list_size)

    def count_pairs(self, texts: int) -> int:
        """How many pairs to keep of `texts` sentences or documents, at most.

        Example:
            >>> MiningSettings(pairs_per_sentence=1.5).count_pairs(1000)
            1500
        """
        wanted = max(2, round(self.pairs_per_sentence * texts))
        return wanted if self.max_pairs is None else min(wanted, self.max_pairs)


@dataclass(frozen=True)
class DistillConfig:
    """Every setting of a distillation run that is not an input. The defaults are the preset `default`.

    `keep_label` and `scale` decide the student's labels: `keep_label * bi + (1 - keep_label) * cross`, after
    `scale` has brought all teachers to one scale. The reference hands on the cross-encoder's label alone (0, raw).
    `bi` is the mean of the bi-encoders' cosines (1) and of what the weights `alignment`, `simplified` and `overlap`
    add to them (see `views`).

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> DistillConfig(cycles=2).bi.loss
        'cosent'
    """

    cycles: int | str = setting(1, "cycles to run (1 or more), or `auto`: until the criterion no longer rises")
    seed: int = setting(2021, "root of every stage's seed, 0 or more")
    keep_label: float | str = setting(
        "agreement", "weight of the bi-encoder's own label in its student's label, 0 to 1; `agreement`: 2 / (2 + r^4), "
        "r the Spearman of both forms"
    )  # fmt: skip
    alignment: float = setting(0.0, "weight of a bi-encoder's token alignment in its label, beside the cosine's 1")
    simplified: float = setting(3.0, "weight of its cosine of the texts without punctuation, likewise")
    overlap: float = setting(0.0, "weight of the words in common (rare ones count more), likewise")
    keep_teachers: bool = setting(False, "the teachers of earlier cycles have their say in the labels of later ones")
    down_weight: float = setting(
        0.0, "students see pairs on which the teachers disagree less often: by this share where they disagree most"
    )
    student: int | None = setting(None, "train the bi-encoder of this backbone alone (0: the first); none: of each")
    scale: str = setting("quantile", "bring the teachers to one scale before averaging", SCALES)
    whiten: bool = setting(
        False, "every bi-encoder gets a whitening layer over the sentences of the run, a student after its training"
    )
    continue_bi: bool = setting(False, "a cycle's bi-encoder starts from the last cycle's, not from the start")
    continue_cross: bool = setting(False, "a cycle's cross-encoder starts from the last cycle's, not from its start")
    select: str = setting(
        "auto", "what chooses the best cycle (see docs/choice.md); auto: dev if there is a dev set, else cautious",
        ("auto", "dev", *CRITERIA, "last", "start"),
    )  # fmt: skip
    eval_steps: int = setting(0, "with a dev set: evaluate and keep the best checkpoint every N steps; 0: the last one")
    save_steps: int = setting(200, "save a checkpoint every N steps")
    precision: str = setting("auto", "arithmetic of training and labelling; weights stay float32", PRECISIONS)
    batch_tokens: int | None = setting(None, "token budget of a batch when labelling; none: by the device")
    bi: BiTrainingSettings = BiTrainingSettings(epochs=2, batch_size=32, learning_rate=3e-5, max_length=32)
    cross: CrossTrainingSettings = CrossTrainingSettings(
        batch_size=32, learning_rate=5e-5, max_length=128, warmup=0.1, group_by_length=True
    )
    bootstrap: BootstrapSettings = BootstrapSettings()
    mine: MiningSettings = MiningSettings()

    def __post_init__(self) -> None:
        """Check the ranges."""
        whole = isinstance(self.cycles, int) and self.cycles >= 1
        _expect(whole or self.cycles == "auto", "cycles", "1 or more, or 'auto'", self.cycles)
        keep = self.keep_label
        _expect(keep == "agreement" or (isinstance(keep, int | float) and 0 <= keep <= 1), "keep_label",
                "between 0 and 1, or 'agreement'", keep)  # fmt: skip
        for name in ("alignment", "simplified", "overlap"):
            weight = getattr(self, name)
            _expect(math.isfinite(weight) and weight >= 0, name, "0 or more", weight)
        _expect(0 <= self.down_weight <= 1, "down_weight", "between 0 and 1", self.down_weight)
        _expect(self.student is None or self.student >= 0, "student", "0 or more", self.student)
        for name, least in (("seed", 0), ("eval_steps", 0), ("save_steps", 1)):
            _expect(getattr(self, name) >= least, name, f"{least} or more", getattr(self, name))
        _expect(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", "1 or more", self.batch_tokens)
        _check_choices(self)


REFERENCE = DistillConfig(
    cycles=3,
    keep_label=0.0,
    simplified=0.0,
    scale="raw",
    eval_steps=200,
    bi=BiTrainingSettings(epochs=10, batch_size=128, learning_rate=5e-5, max_length=32, loss="mse"),
    cross=CrossTrainingSettings(epochs=1, batch_size=32, learning_rate=2e-5, max_length=64, warmup=0.1),
)
"""The recipe of the reference code (Liu et al., ICLR 2022), its bugs fixed."""

PRESETS: Mapping[str, DistillConfig] = {"default": DistillConfig(), "reference": REFERENCE}


def merge_config(base: Settings, changes: Mapping[str, Any], *, where: str = "settings") -> Settings:
    """Return `base`, of any settings class, with the nested `changes`, e.g. `{"cycles": 2, "bi": {"epochs": 3}}`.

    Raises:
        InputError: an unknown name, a wrong type, a value out of range; `where` names the source.

    Example:
        >>> merge_config(DistillConfig(), {"bi": {"epochs": 3}}).bi.epochs
        3.0
    """
    return _replace(base, changes, where)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file; a run's own `run.json` is one too.

    Raises:
        InputError: no such file, no mapping, or not parseable.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as plain JSON values, the inverse of `merge_config`."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def field_types(kind: type) -> dict[str, Any]:
    """Names and resolved types of a settings class, in order."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _replace(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    types = field_types(type(base))
    values = {}
    for name, value in changes.items():
        if name not in types:
            raise InputError(f"{where}: no setting {name!r}; expected one of {', '.join(types)}")
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}: {name} must be a mapping of settings, found {value!r}")
            values[name] = _replace(getattr(base, name), value, f"{where}: {name}")
        else:
            values[name] = _convert(value, types[name], f"{where}: {name}")
    try:
        return dataclasses.replace(base, **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _convert(value: Any, kind: Any, where: str) -> Any:
    kinds = get_args(kind) or (kind,)
    for candidate in kinds:
        if candidate is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, candidate) and not (isinstance(value, bool) and candidate is not bool):
            return value
    if float in kinds and isinstance(value, str):  # YAML 1.1 reads 2e-5 as text
        try:
            return float(value)
        except ValueError:
            pass
    raise InputError(f"{where} must be {' or '.join(k.__name__ for k in kinds)}, found {value!r}")
