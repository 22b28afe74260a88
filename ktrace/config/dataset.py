"""Which facts, and how their prompts are read: the keys `dataset.*`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ktrace.terms import Choice


class Answer(Choice):
    """How much of an answer is scored."""

    # As published, but for answers of several tokens: docs/datasets.md.
    first_token = "first_token"
    full = "full"  # all of its tokens, each given those before it


class Separator(Choice):
    """What is put between a prompt and its answer; `auto` puts what the joined text needs."""

    auto = "auto"
    space = "space"
    none = "none"


class Delimiter(Choice):
    """What stands between the cells of a table of text; `auto` is what its header shows."""

    auto = "auto"
    comma = "comma"
    semicolon = "semicolon"
    tab = "tab"
    pipe = "pipe"


class Bos(Choice):
    """Whether a prompt that has a BOS token of its own gets the tokenizer's as well."""

    keep = "keep"
    strip = "strip"


@dataclass
class ColumnsConfig:
    """Where a file of another schema keeps the fields of a fact; `a.b` is b inside a.

    An empty name says that the field is not given.
    """

    known_id: str | None = None  # `_row` numbers the records from 0
    prompt: str | None = None
    subject: str | None = None
    attribute: str | None = None
    template: str | None = None  # a prompt with {} where the subject belongs
    relation_id: str | None = None
    subject_start: str | None = None
    corrupted_prompt: str | None = None
    foil: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Column by field, of the fields that are somewhere else."""
        return {name: column for name, column in vars(self).items() if column is not None}


@dataclass
class DatasetConfig:
    """Which facts: those of a file, of a dataset repository, or one prompt."""

    name: str = MISSING  # folder of the store
    path: str | None = MISSING
    # The first n facts; never changes a fact's numbers.
    limit: int | None = field(default=None, metadata={"least": 1})
    url: str | None = None  # where a missing file is downloaded from
    sha256: str | None = None  # of the canonical JSON, checked after reading
    encoding: str | None = None  # of a file's text, as Python calls it; null: by its mark, or UTF-8
    delimiter: Delimiter = Delimiter.auto
    answer: Answer = Answer.first_token
    separator: Separator = Separator.auto
    chat: bool = False  # whether prompts are the user's turn in the tokenizer's chat template
    bos: Bos = Bos.keep
    hub: str | None = None  # dataset repository; `path` are data files in it, if anything
    subset: str | None = None  # which of its configurations
    split: str | None = None  # of it
    revision: str | None = None  # its branch, tag or commit
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    prompt: str | None = None  # in place of a file
    subject: str | None = None
    attribute: str | None = None  # null: what the model predicts
    also: list[str] = field(default_factory=list)  # other right answers of that prompt
    subject_start: int | None = None  # character, where the prompt holds the subject twice
    corrupted_prompt: str | None = None  # the other prompt of a pair, for noise=pair
    foil: str | None = None  # a wrong answer, for logit_difference with noise=pair
    # Facts whose subjects the noise is measured on; null: the dataset's own.
    noise_facts: str | None = None
