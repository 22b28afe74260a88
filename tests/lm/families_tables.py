"""Write the tables of architectures into docs/models.md: what is known, and what is refused.

Run it after ktrace/lm/families.py has changed: `python -m tests.lm.families_tables`. How well the
engines agree on each is another table: tests/tracing/parity_table.py.
"""

from collections.abc import Iterable, Mapping

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ktrace.lm.families import FAMILIES, TEXT_CLASSES
from ktrace.lm.paths import ModulePaths
from ktrace.lm.refused import REFUSED
from tests.support.families import NOT_REPLAYED
from tests.support.places import ROOT

DOCUMENT = ROOT / "docs" / "models.md"
MAPPED: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
# The recipe of CONTRIBUTING.md adds the first, and docs/models.md gives its module paths. The
# second cannot run in float64, in which families are proven.
BY_MODULE_PATHS = ("PersimmonForCausalLM", "XGLMForCausalLM")


def begin(name: str) -> str:
    return f"<!-- {name}: tests/lm/families_tables.py -->"


def end(name: str) -> str:
    return f"<!-- end of {name} -->"


def known() -> str:
    """Where the sites of each architecture lie."""
    rows = (
        f"| `{name}` | `{paths.embedding}` | `{paths.block}` | {_inner(paths, 'attn')} "
        f"| {_inner(paths, 'mlp')} |"
        for name, paths in sorted(FAMILIES.items())
    )
    head = "| Architecture | Embedding | Block (`hidden`) | Attention (`attn`) | MLP (`mlp`) |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *rows])


def _inner(paths: ModulePaths, site: str) -> str:
    if not paths.kinds:
        path = getattr(paths, site)
        return f"`{path.removeprefix(paths.block)}`" if path else "none"
    by_kind = {kind.marks: getattr(kind, site) for kind in paths.kinds}
    found = dict.fromkeys(f"`.{path}`" for path in by_kind.values() if path)
    if not found:
        return "none"
    return f"by layer: {' or '.join(found)}"


def text_class(model_type: str) -> str | None:
    """The class of the text model within a model that reads more than text."""
    config = CONFIG_MAPPING[model_type]()
    if getattr(config, "is_encoder_decoder", False):
        return None
    inner = config.get_text_config().model_type
    if inner == model_type:
        return None
    return TEXT_CLASSES.get(inner) or MAPPED.get(inner)


def groups() -> dict[str, list[str]]:
    """Every class that transformers has for causal language models, by what ktrace does with it."""
    found: dict[str, list[str]] = {}
    for model_type, name in MAPPED.items():
        group = _group(model_type, name)
        if name not in found.setdefault(group, []):
            found[group].append(name)
    return {group: sorted(names) for group, names in sorted(found.items())}


def _group(model_type: str, name: str) -> str:
    if name in FAMILIES:
        reason = NOT_REPLAYED.get(name)
        return f"2 reference: {reason}" if reason else "1 suffix"
    if name in REFUSED:
        return f"5 refused: {REFUSED[name]}"
    if name in BY_MODULE_PATHS:
        return "4 module paths"
    inner = text_class(model_type)
    if inner in FAMILIES:
        return "3 within"
    if inner in REFUSED:
        return f"5 refused: {REFUSED[inner]}"
    return "nothing"


def coverage() -> str:
    """Every causal language model of transformers."""
    found = groups()
    return "\n\n".join(
        (
            f"Traced by the suffix engine: {_names(found['1 suffix'])}.",
            "Traced by the reference engine alone, because their layers keep",
            _listed(found, "2 reference: "),
            f"Traced as the text models within them: {_names(found['3 within'])}.",
            f"Traced with [module paths](#an-architecture-that-is-not-in-the-table) that you give: "
            f"{_names(found['4 module paths'])}.",
            "Refused, because",
            _listed(found, "5 refused: "),
        )
    )


def _listed(found: Mapping[str, list[str]], prefix: str) -> str:
    return "\n".join(
        f"- {group.removeprefix(prefix)}: {_names(names)}"
        for group, names in found.items()
        if group.startswith(prefix)
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES = {"known architectures": known, "coverage": coverage}


if __name__ == "__main__":
    text = DOCUMENT.read_text("utf-8")
    for name, table in TABLES.items():
        before, rest = text.split(begin(name))
        after = rest.split(end(name))[1]
        text = f"{before}{begin(name)}\n\n{table()}\n\n{end(name)}{after}"
    DOCUMENT.write_text(text, "utf-8")
