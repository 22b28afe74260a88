"""Where the stores of a run lie, whether they are complete, and who computed their parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ktrace.errors import KtraceError
from ktrace.store.schema import ACTIVATIONS, CLEAN, CORRUPTED, RESTORED, JsonObject
from ktrace.store.store import Store
from ktrace.terms import ClaimKind


@dataclass(frozen=True)
class RunFolders:
    """`<output_dir>/<model>/<dataset>/<noise>`, and the stores in and beside it.

    Attributes:
        run: the folder of one noise; the clean store is its neighbour, shared by every noise.
        claims: how processes that write there keep out of each other's way.
        elsewhere: where the analysis goes, if not into the run's folder.
    """

    run: Path
    claims: ClaimKind = ClaimKind.auto
    elsewhere: Path | None = None

    @property
    def clean(self) -> Store:
        """Clean runs, shared by every mediator and noise."""
        return Store(self.run.parent / "clean", CLEAN, self._of_dataset, claims=self.claims)

    @property
    def corrupted(self) -> Store:
        """Corrupted runs."""
        names = {**self._of_dataset, "noise": self.run.name}
        return Store(self.run / "corrupted", CORRUPTED, names, claims=self.claims)

    def restored(self, mediator_key: str) -> Store:
        """Restorations of one mediator, such as `mlp-w10`."""
        names = {**self._of_dataset, "noise": self.run.name, "mediator": mediator_key}
        return Store(self.run / "restored" / mediator_key, RESTORED, names, claims=self.claims)

    def activations(self, kind: str) -> Store:
        """States of the `clean` runs, shared by every noise, or of the `corrupted` ones.

        Apart from the scores, so that these are read without them. Nothing is computed from them,
        so runs do not read them as a whole either.
        """
        folder, names = self.run.parent / "activations" / kind, self._of_dataset
        if kind == "corrupted":
            folder, names = folder / self.run.name, {**names, "noise": self.run.name}
        return Store(folder, ACTIVATIONS[kind], names, read_by_runs=False, claims=self.claims)

    @property
    def _of_dataset(self) -> dict[str, str]:
        folder = self.run.absolute()
        return {"model": folder.parent.parent.name, "dataset": folder.parent.name}

    def mediator_keys(self) -> list[str]:
        """Mediators that have parts."""
        folders = sorted((self.run / "restored").glob("*/"))
        return [folder.name for folder in folders if Store(folder, RESTORED).parts()]

    @property
    def analysis(self) -> Path:
        """Tables and figures."""
        return self.elsewhere or self.run / "analysis"

    @property
    def run_yaml(self) -> Path:
        """Resolved config, versions and fingerprint of the run that last added to the stores."""
        return self.run / "run.yaml"

    @property
    def runs(self) -> Path:
        """The same of every run, analyses among them: a file each."""
        return self.run / "runs"


def is_complete(folders: RunFolders, mediator_keys: Sequence[str], n_facts: int) -> bool:
    """Whether the stores hold all that the analysis of the first `n_facts` facts needs."""
    try:
        clean = {record["index"]: record for record in folders.clean.read("is_candidate")}
        if not all(index in clean for index in range(n_facts)):
            return False
        candidates = [index for index in range(n_facts) if clean[index]["is_candidate"]]
        corrupted = {record["index"]: record for record in folders.corrupted.read("left_out")}
        if not all(index in corrupted for index in candidates):
            return False
        traced = {index for index in candidates if not corrupted[index]["left_out"]}
        return all(
            traced <= {record["index"] for record in folders.restored(key).read()}
            for key in mediator_keys
        )
    except KtraceError:  # a damaged part: it is not all there
        return False


UNRECORDED = "unrecorded"  # parts that do not name their run


class Share(TypedDict):
    """What one run gave to a store; `written` is when its last part was."""

    parts: int
    facts: int
    wall_seconds: float
    written: str


class Provenance(TypedDict):
    """Which runs computed what.

    `stores` is by the store's path below the dataset or noise, and then by the run's name; `runs`,
    by the run's name, has versions, config, model, device and so on.
    """

    stores: dict[str, dict[str, Share]]
    runs: dict[str, JsonObject]


def provenance_of(folders: RunFolders, mediator_keys: Iterable[str]) -> Provenance:
    """Which runs computed what.

    Args:
        folders: of the run.
        mediator_keys: whose restorations are asked about.

    Raises:
        KtraceError: a damaged part.
    """
    stores: dict[str, Store] = {"clean": folders.clean, "corrupted": folders.corrupted}
    stores |= {f"restored/{key}": folders.restored(key) for key in mediator_keys}
    runs: dict[str, JsonObject] = {}
    return {
        "stores": {name: _shares(store, runs) for name, store in stores.items()},
        "runs": runs,
    }


def _shares(store: Store, runs: dict[str, JsonObject]) -> dict[str, Share]:
    """By the run's name; what the parts say about the runs is added to `runs`."""
    found: dict[str, Share] = {}
    for about, n_facts in store.provenance():
        run = about.pop("run", UNRECORDED)
        share = found.setdefault(run, {"parts": 0, "facts": 0, "wall_seconds": 0.0, "written": ""})
        share["parts"] += 1
        share["facts"] += n_facts
        share["wall_seconds"] = round(share["wall_seconds"] + about.pop("wall_seconds", 0.0), 3)
        share["written"] = max(share["written"], about.pop("written", ""))
        # A run knows its engine and noise only after its clean runs.
        runs.setdefault(run, {}).update(about)
    return found
