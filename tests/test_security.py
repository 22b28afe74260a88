"""What the code must never do: unpickle, run a shell or code from data, load YAML objects."""

import ast

import pytest

from tests.test_architecture import MODULES

UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "OmegaConf.load",
    "hydra.utils.instantiate",
    "instantiate",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's target; empty where it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def found(source: str) -> list[str]:
    """What of the above a module does."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        else:
            names = []
        wrong += [name for name in names if name in UNPICKLING]
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                wrong.append(dotted(node.func))
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "allow_pickle") and not is_false:
                    wrong.append(f"{keyword.arg}=")
    return wrong


# Hands the user's own choice on to transformers: weights other than safetensors only on request.
ON_REQUEST = {f"ktrace.{name}": ["allow_pickle="] for name in ("api.load", "pipeline.assignment")}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_unpickled_and_no_shell_is_run(name: str) -> None:
    assert found(MODULES[name].read_text("utf-8")) == ON_REQUEST.get(name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=wanted)",
        "import os\nos.system('ls')",
        "eval('1')",
        "import yaml\nyaml.load(text)",
    ],
)
def test_the_walk_sees_what_it_looks_for(source: str) -> None:
    assert found(source) != []
