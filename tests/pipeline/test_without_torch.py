"""What reads stores alone loads no torch, which would make it wait for seconds."""

import subprocess
import sys
from pathlib import Path

from tests.support.configs import Compose
from tests.support.stores import CANDIDATES, known_id, write_run

# One process for all: the first import is what takes the time.
PROGRAM = """
import sys
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra
import ktrace
import ktrace.analysis.analyze
from ktrace.analysis.figures.drawing import Drawing
from ktrace.analysis.figures.processes import Artists
from ktrace.__main__ import main

def light(what):
    heavy = {"torch", "transformers", "tokenizers"} & sys.modules.keys()
    assert not heavy, f"{what} loads {heavy}"

sys.modules["tokenizers"] = None
try:
    light("this")
except AssertionError:
    del sys.modules["tokenizers"]
else:
    sys.exit("nothing would be seen")

run, known_id, *rest = sys.argv[1:]
assert len(ktrace.load_effects(run)) > 10
light("load_effects")
assert len(ktrace.load_activations(run, "mlp", 0, known_id=int(known_id)).states)
light("load_activations")
commands = [[]]
for argument in rest:
    commands.append([]) if argument == "then" else commands[-1].append(argument)
for command in commands:
    sys.argv = ["ktrace", *command]
    GlobalHydra.instance().clear()
    main()
    light(command)
    nothing = Drawing(Path(), Artists())  # once is enough
    ktrace.analysis.analyze.draw_figures = lambda *_, **__: nothing
"""


def test_what_reads_stores_alone_loads_no_torch(
    traced: Compose, own: tuple[str, ...], tmp_path: Path
) -> None:
    """With the model at hand, whose settings are compared; without it; side by side; complete."""
    made_up = write_run(tmp_path)
    here = (*own, "noise.samples=3", f"output_dir={traced().output_dir}")
    gone = ("model=auto", "model.path=nowhere/toy", "model.name=toy", "noise.samples=2")
    gone += ("dataset=file", "dataset.path=made-up.jsonl")
    both = (f"{made_up.run}", f"{traced().output_dir}/*/*/gaussian*")
    result = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(made_up.run), str(known_id(CANDIDATES[0]))),
            *("stage=analyze", *here, "then", "stage=analyze", *gone),
            *("then", "stage=compare", f"runs=[{','.join(both)}]"),
            # Everything is stored: no model is loaded.
            *("then", "stage=restore", *here),
            *("then", "stage=status", *gone, "then", "stage=compact", *gone),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "6 of 7 facts are candidates" in result.stdout
    assert "5 of 6 facts are candidates" in result.stdout
    assert (made_up.analysis / "aie.csv").is_file()
    assert "minus toy" in result.stdout
    assert "seconds left" in result.stdout
    assert "Parts of " in result.stdout
