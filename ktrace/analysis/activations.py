"""Stored states of all facts at once, for probing.

Axes: n_rows, of each fact the positions asked for, in the order of the dataset and of the prompt: a
role such as the last subject token is at one position of a fact, so that n_rows is the number of
facts; n_samples, those that are stored; d_model, features of a state.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ktrace.analysis.run_folder import FolderPath, run_folders
from ktrace.analysis.stored import expected_facts
from ktrace.errors import KtraceError
from ktrace.store import RunFolders, StatesRecord, Store
from ktrace.store.schema import Array, LayerRow
from ktrace.terms import ROLE_KEYS, RUN_KINDS, SITES


class Activations(NamedTuple):
    """States of one site and layer.

    Attributes:
        states: `(n_rows, d_model)`; of corrupted runs `(n_rows, n_samples, d_model)`. In the
            model's dtype; bfloat16 comes as float32.
        known_ids: of each row's fact, `(n_rows,)`.
    """

    states: Array
    known_ids: npt.NDArray[np.int64]


def load_activations(
    run_folder: FolderPath,
    site: str,
    layer: int,
    role: str | None = None,
    run_kind: str = "clean",
    *,
    known_id: int | None = None,
    partial: bool = False,
) -> Activations:
    """States of the clean or corrupted runs, of all facts at once or of one.

    >>> run = "outputs/tiny/facts/gaussian-x3-n10-seed1"
    >>> states, known_ids = ktrace.load_activations(run, "hidden", layer=4, role="last_subject")
    >>> states.shape, known_ids.shape
    ((12, 128), (12,))

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        site: `hidden` (the block's output), `attn` or `mlp`.
        layer: counted from 0.
        role: `last_subject` or any other, in the scheme `rome`: facts without such a position have
            no row, and `middle_subject` and `further` may have several. None: every position that
            is stored.
        run_kind: `clean` or `corrupted`.
        known_id: of the only fact that is wanted.
        partial: whether to take what is there of an unfinished run.

    Returns:
        The states, and of which fact each is.

    Raises:
        KtraceError: no such states are stored, with the key `activations.*` that stores them; or an
            unfinished run, unless `partial` is set; or a damaged part; or not a run's folder.
    """
    _require_known(site, role, run_kind)
    folders = run_folders(run_folder)
    asked = _Asked(folders.activations(run_kind), run_kind, site, layer, role)
    asked.require_stored()
    # Which rows there are is read first: states go to their places one part after another.
    found: dict[int, _Place] = {}
    why = "no such fact is stored"
    for record in StatesRecord.read(asked.store):
        if known_id in (None, record.known_id):
            why = "it is no candidate"
            if len(record.layers):
                found[record.index] = asked.place_of(record)
    if known_id is not None and not found:
        raise KtraceError(f"known_id={known_id}: {asked.store.folder} has no states of it: {why}")
    if known_id is None and not partial:
        asked.require_whole(folders, found.keys())
    places = {index: found[index] for index in sorted(found) if found[index].n_rows}
    if not places:
        raise KtraceError(f"role={role!r}: no fact in {asked.store.folder} has such a position")
    known_ids = np.repeat(
        [place.known_id for place in places.values()], [place.n_rows for place in places.values()]
    )
    return Activations(asked.states_of(places, len(known_ids)), known_ids)


def _require_known(site: str, role: str | None, run_kind: str) -> None:
    for name, value, choices in (
        ("site", site, SITES),
        ("role", role and _role_key(role), (None, *ROLE_KEYS)),
        ("run_kind", run_kind, RUN_KINDS),
    ):
        if value not in choices:
            raise KtraceError(
                f"{name}={value!r:.60} is unknown: choose from {', '.join(map(str, choices))}"
            )


def _role_key(role: str) -> str:
    """As in the config: frames call roles by their names, with blanks."""
    return str(role).replace(" ", "_")


@dataclass(frozen=True)
class _Place:
    """Where the states of a fact are: in its part, and among its positions.

    Attributes:
        known_id: the fact's own number.
        layer: which of those that are stored.
        positions: whether each stored one is wanted, `(n_kept_positions,)`.
        n_rows: how many are.
    """

    known_id: int
    layer: LayerRow
    positions: npt.NDArray[np.bool_]

    @property
    def n_rows(self) -> int:
        return int(self.positions.sum())


@dataclass(frozen=True)
class _Asked:
    """What is wanted, and of which store."""

    store: Store
    run_kind: str
    site: str
    layer: int
    role: str | None

    def require_stored(self) -> None:
        """Refuse a site or a role that the store does not keep."""
        folder, bound = self.store.folder, self.store.bound()
        if bound is None:
            raise KtraceError(
                f"{folder} holds no states: run with 'activations.{self.run_kind}=[{self.site}]'"
            )
        kept = bound.get("activations")
        if not isinstance(kept, dict) or not isinstance(kept.get("sites"), list):
            raise KtraceError(f"damaged: {folder} does not say which states it holds: remove it")
        if self.site not in kept["sites"]:
            raise self._not_stored("site", self.run_kind, kept["sites"])
        roles = kept.get("positions")
        if self.role is not None and isinstance(roles, list) and _role_key(self.role) not in roles:
            raise self._not_stored("role", "positions", roles)

    def _not_stored(self, name: str, key: str, kept: Sequence[object]) -> KtraceError:
        return KtraceError(
            f"{name}={getattr(self, name)!r:.60} is not stored: {self.store.folder} holds "
            f"{', '.join(map(str, kept))} (activations.{key}); to store others, remove that folder "
            "and run again"
        )

    def _lacks_layer(self, layers: Sequence[int]) -> KtraceError:
        bound = self.store.bound() or {}
        if bound["activations"].get("layers") is not None:
            return self._not_stored("layer", "layers", layers)
        return KtraceError(f"layer={self.layer!r:.60} is out of range: 0 to {layers[-1]}")

    def place_of(self, record: StatesRecord) -> _Place:
        """Of one fact that has states."""
        layers = record.layers.tolist()
        if self.layer not in layers:
            raise self._lacks_layer(layers)
        if len(record.roles) != len(record.positions):
            raise self._other_axes(record.known_id)
        of_role = [self.role in (None, role, _role_key(role)) for role in record.roles]
        layer = LayerRow(layers.index(self.layer), len(layers))
        return _Place(record.known_id, layer, np.array(of_role, dtype=bool))

    def states_of(self, places: Mapping[int, _Place], n_rows: int) -> Array:
        """Rows of the wanted positions, by fact in the order of `places`, read part by part.

        Returns:
            `(n_rows, d_model)`; with samples `(n_rows, n_samples, d_model)`.
        """
        ends = np.cumsum([place.n_rows for place in places.values()]).tolist()
        stops = dict(zip(places, ends, strict=True))
        rows = {index: place.layer for index, place in places.items()}
        into: Array | None = None
        for index, layer in self.store.read_layer(self.site, rows):
            place = places[index]
            states = self._checked(place, layer)[place.positions]
            if into is None:
                into = np.empty((n_rows, *states.shape[1:]), states.dtype)
            if states.shape[1:] != into.shape[1:] or states.dtype != into.dtype:
                raise self._other_axes(place.known_id)
            into[stops[index] - len(states) : stops[index]] = states
        if into is None:  # each was there a moment ago
            raise KtraceError(f"{self.store.folder} has lost its parts")
        return into

    def _checked(self, place: _Place, layer: Array) -> Array:
        """Of one fact, `(n_kept_positions, d_model)`; with samples as the second axis."""
        # Its axes are empty where the model lacks the site; layers that lack it hold NaN.
        states = _widened(layer)
        if not states.size or np.isnan(states).all():
            where = f" in layer={self.layer}" if states.size else ""
            raise KtraceError(
                f"site={self.site!r}: the model of {self.store.folder} has none{where}"
            )
        if states.shape[-2] != len(place.positions):
            raise self._other_axes(place.known_id)
        by_position: Array = np.moveaxis(states, -2, 0)
        return by_position

    def _other_axes(self, known_id: int) -> KtraceError:
        return KtraceError(
            f"damaged: {self.store.folder}: of known_id={known_id}, {self.site!r} has other "
            "axes than its layers and positions: remove that folder, and run again"
        )

    def require_whole(self, folders: RunFolders, have: Collection[int]) -> None:
        """Refuse a store that lacks facts; of scores nothing is read that does not tell."""
        clean = {row["index"]: row["is_candidate"] for row in folders.clean.read("is_candidate")}
        expected = expected_facts(folders, None, whole_dataset=True)
        wanted = {index for index, is_candidate in clean.items() if is_candidate}
        lacking = []
        if expected is not None and len(clean) < expected:
            lacking.append(f"{folders.clean.folder} holds {len(clean)} of {expected} facts")
        if self.run_kind == "corrupted":
            corrupted = {
                row["index"]: row["left_out"] for row in folders.corrupted.read("left_out")
            }
            wanted -= {index for index, left_out in corrupted.items() if left_out}
        stored = sum(index in have for index in wanted)
        if stored < len(wanted):
            lacking.append(f"{self.store.folder} holds {stored} of {len(wanted)} candidates")
        if lacking:
            raise KtraceError(
                f"{folders.run} is not complete ({'; '.join(lacking)}): finish the run, or "
                "take what is there with partial=True"
            )


def _widened(states: Array) -> Array:
    if states.dtype != np.uint16:
        return states
    # bfloat16 is the upper half of float32.
    return (states.astype(np.uint32) << 16).view(np.float32)
