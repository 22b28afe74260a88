"""Stores of states: what is asked for, what of it is stored already, and what goes in.

A store keeps what it was begun with. A run that asks for no more goes on with that; one that asks
for more is refused, so that facts of one store never differ in what is kept.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktrace.config import KeptStates, require_layers
from ktrace.config.identity import Fingerprint
from ktrace.errors import KtraceError
from ktrace.facts import Fact, role_of_positions
from ktrace.pipeline.assignment import Assignment
from ktrace.pipeline.work import Lacking, work
from ktrace.store import ACTIVATIONS, PartWriter, RunFolders, StatesRecord, Store
from ktrace.terms import RUN_KINDS, SITES, role_named

if TYPE_CHECKING:
    import torch

    from ktrace.lm.model import LanguageModel
    from ktrace.pipeline.session import Session
    from ktrace.tracing.encoded import EncodedFact
    from ktrace.tracing.engine import Case
    from ktrace.tracing.states import Kept, States

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateStore:
    """Where the states of the clean or of the corrupted runs go.

    Attributes:
        kind: of the runs, as in `RUN_KINDS`.
        store: the folder.
        kept: what it keeps.
        fingerprint: what its parts are bound to.
        done: indices of the facts that it holds.
    """

    kind: str
    store: Store
    kept: KeptStates
    fingerprint: Fingerprint
    done: frozenset[int]

    def writer(self, origin: dict[str, object]) -> PartWriter:
        """See `Store.writer`."""
        return self.store.writer(self.fingerprint, origin)

    def kept_of(self, lm: "LanguageModel", encoded: "EncodedFact") -> "Kept":
        """Which states of a fact are kept: layers and positions by their numbers."""
        from ktrace.tracing.states import Kept

        roles, kept = _roles(encoded), self.kept
        positions = [*range(len(roles))]
        if kept.positions is not None:
            chosen = {role_named(key) for key in kept.positions}
            positions = [position for position in positions if roles[position] in chosen]
        layers = range(lm.n_layers) if kept.layers is None else kept.layers
        return Kept(kept.sites, tuple(layers), tuple(positions))

    def record(
        self,
        lm: "LanguageModel",
        index: int,
        fact: Fact,
        encoded: "EncodedFact",
        states: "States | None",
    ) -> StatesRecord:
        """Of one fact; all of it is empty without states, as of a fact that is no candidate."""
        kept, roles = self.kept_of(lm, encoded), _roles(encoded)
        positions = () if states is None else kept.positions
        n_axes = len(ACTIVATIONS[self.kind][SITES[0]].axes)
        return StatesRecord(
            index=index,
            known_id=fact.known_id,
            layers=np.array(() if states is None else kept.layers, dtype=np.int64),
            positions=np.array(positions, dtype=np.int64),
            roles=[roles[position] or "" for position in positions],
            states={
                site: _bits((states or {}).get(site), lm.model.dtype, n_axes) for site in SITES
            },
        )


def _roles(encoded: "EncodedFact") -> Sequence[str | None]:
    return role_of_positions(encoded.span, len(encoded.prompt.input_ids))


def _bits(
    states: "torch.Tensor | None", dtype: "torch.dtype", n_axes: int
) -> npt.NDArray[np.generic]:
    """Of states as numpy keeps them; empty for None: not every family has all sites."""
    import torch

    if states is None:
        states = torch.empty([0] * n_axes, dtype=dtype)
    # numpy has no bfloat16: its bits travel as uint16.
    kept = states.view(torch.uint16) if states.dtype == torch.bfloat16 else states
    return np.ascontiguousarray(kept.numpy())


def state_stores(assignment: Assignment, folders: RunFolders) -> dict[str, StateStore]:
    """The stores that a run fills, by kind of run: those that it asks for.

    Raises:
        KtraceError: one holds states of other settings, or fewer than are asked for.
    """
    return {
        kind: _state_store(assignment, folders.activations(kind), kind)
        for kind in RUN_KINDS
        if kind in assignment.prints.kept
    }


def _state_store(assignment: Assignment, store: Store, kind: str) -> StateStore:
    asked = assignment.prints.kept[kind]
    kept = _stored(store, asked) or asked
    fingerprint = assignment.prints.activations(kind, kept)
    return StateStore(kind, store, kept, fingerprint, store.done(fingerprint))


def _stored(store: Store, asked: KeptStates) -> KeptStates | None:
    """What a store keeps, which is all that is asked for; None where it is empty."""
    bound = store.bound()
    if bound is None:
        return None
    found = bound.get("activations", {})
    try:
        kept = KeptStates.of(found)
        covers = kept.covers(asked)
    except (AttributeError, KeyError, TypeError) as error:
        raise KtraceError(
            f"{store.folder} does not say which states it holds: remove it"
        ) from error
    if not covers:
        raise KtraceError(
            f"{store.folder} holds fewer states than are asked for (activations: stored "
            f"{json.dumps(found)}, now {json.dumps(asked.fingerprint)}). Remove that folder, and "
            "they are computed anew (scores stay as they are); or ask for no more than it holds"
        )
    if asked.layers is not None and kept.layers is None:
        some = (len(record.layers) for record in StatesRecord.read(store) if len(record.layers))
        require_layers(asked.layers, next(some, max(asked.layers) + 1))
    return kept


def run_corrupted_states(session: "Session", into: StateStore, cases: Sequence["Case"]) -> None:
    """Store states of the corrupted runs of facts that the noise can corrupt."""
    from ktrace.tracing.states import corrupted_states

    facts, lm, run_log = session.assignment.facts.facts, session.lm, session.log
    by_index = {case.index: case for case in session.corrupted(cases)}
    noise = session.noise.noise
    with run_log.timed("activations"), into.writer(run_log.on_parts()) as writer:

        def compute(unit: Sequence[int], lacking: Lacking) -> None:
            for index in unit:
                encoded = session.encoded[index]
                kept = into.kept_of(lm, encoded)
                n_samples = into.kept.samples or noise.samples
                states = corrupted_states(lm, noise, by_index[index], kept, n_samples)
                writer.add(into.record(lm, index, facts[index], encoded, states).row())

        units = [[case.index] for case in cases]
        work("states of corrupted runs", units, {into.kind: writer}, compute, session.workers)
