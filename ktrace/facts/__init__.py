"""Facts: reading and checking them, and where a subject's tokens stand in its prompt."""

from ktrace.facts.fact import Fact, FactSet
from ktrace.facts.load import load_facts, prompt_facts
from ktrace.facts.roles import role_of_positions
from ktrace.facts.span import Span, changed_span, token_span

__all__ = [
    "Fact",
    "FactSet",
    "Span",
    "changed_span",
    "load_facts",
    "prompt_facts",
    "role_of_positions",
    "token_span",
]
