"""Where the stores of a run lie."""

from dataclasses import dataclass
from pathlib import Path

from ktrace.store.schema import CLEAN, CORRUPTED, RESTORED
from ktrace.store.store import Store


@dataclass(frozen=True)
class RunFolders:
    """`<output_dir>/<model>/<dataset>/<noise>`, and the stores in and beside it.

    Attributes:
        run: the folder of one noise; the clean store is its neighbour, shared by every noise.
    """

    run: Path

    @property
    def clean(self) -> Store:
        """Clean runs, shared by every mediator and noise."""
        return Store(self.run.parent / "clean", CLEAN)

    @property
    def corrupted(self) -> Store:
        """Corrupted runs."""
        return Store(self.run / "corrupted", CORRUPTED)

    def restored(self, mediator_key: str) -> Store:
        """Restorations of one mediator, such as `mlp-w10`."""
        return Store(self.run / "restored" / mediator_key, RESTORED)

    def mediator_keys(self) -> list[str]:
        """Mediators that have parts."""
        folders = sorted((self.run / "restored").glob("*/"))
        return [folder.name for folder in folders if Store(folder, RESTORED).parts()]

    @property
    def analysis(self) -> Path:
        """Tables and figures."""
        return self.run / "analysis"

    @property
    def run_yaml(self) -> Path:
        """Resolved config, versions and fingerprint of the run that last added to the stores."""
        return self.run / "run.yaml"

    @property
    def runs(self) -> Path:
        """The same of every run, analyses among them: a file each."""
        return self.run / "runs"
