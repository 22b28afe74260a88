"""Floating-point operations that the method needs, and the machine's ceiling for them."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ktrace.facts import Span
from ktrace.lm.linear import onednn_products
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.suffix.grid import walking_together
from ktrace.tracing.suffix.plan import Cell, Step, make_plan
from ktrace.tracing.suffix.runs import Base, recorded_rows


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer, in multiplications a token.

    Attributes:
        n_layers: blocks.
        d_model: width.
        vocabulary: rows of the head.
        keys_values: weights of the key and value projections in one block.
        queries: of its query projection.
        output: of its attention's output projection.
        mlp: of its MLP.
        n_heads: of a layer's attention.
    """

    n_layers: int
    d_model: int
    vocabulary: int
    keys_values: int
    queries: int
    output: int
    mlp: int
    n_heads: int = 1

    @property
    def block(self) -> int:
        """Weights of a block."""
        return self.keys_values + self.queries + self.output + self.mlp

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.d_model * self.vocabulary


def gpt2_shape(
    n_layers: int = 12, d_model: int = 768, vocabulary: int = 50257, n_heads: int = 12
) -> Shape:
    """GPT-2: attention of 4 d², MLP of 8 d²."""
    square = d_model**2
    return Shape(n_layers, d_model, vocabulary, 2 * square, square, square, 8 * square, n_heads)


def operations(
    shape: Shape, mediators: Sequence[Mediator], n_positions: int, span: Span, samples: int
) -> float:
    """Operations (two for each multiply-add) to trace one fact; attention scores left out.

    Counted: the clean row and the corrupted rows once, for mediators of one base; for each position
    where states are put and layer, the rows that differ from the base, on the positions where they
    may, but for what is put there (the MLP's output, or the attention's, with its queries) and for
    what is known (queries, keys and values of a row that joins); in the last layer keys and values
    of those positions, everything else of the last position alone; the head at the last position
    for every row that ends there. Where edges are cut, one clean row, and rows from the query on.
    """
    bases: list[Base] = []
    total = 0.0
    for base, some in walking_together(mediators):
        if base not in bases:
            bases.append(base)
            passes = recorded_rows(samples, base)
            total += passes * (n_positions * shape.n_layers * shape.block + shape.head)
        total += _together(shape, some, n_positions, span) * base.rows(samples)
    return 2.0 * total


def _together(shape: Shape, mediators: Sequence[Mediator], n_positions: int, span: Span) -> float:
    """Multiplications for one row of the base."""
    first = mediators[0]
    places = first.places(span, n_positions)
    sources = {first.sources(p, span, n_positions) for p in places} if first.cuts else {()}
    cells = [
        Cell(mediator, layer, head, cut)
        for mediator in mediators
        for layer in range(shape.n_layers)
        for head in range(shape.n_heads if mediator.has_heads else 1)
        for cut in sorted(sources)
    ]
    plan = make_plan(cells, shape.n_layers)
    query = first.query_position(span, n_positions) if first.cuts else None
    begins = [place for place in places if place >= span.start] if query is None else [query]
    return sum(
        _step(shape, step, n_positions - position, is_last=layer == shape.n_layers - 1)
        for position in begins
        for layer, step in enumerate(plan.steps)
    )


def _step(shape: Shape, step: Step, later: int, *, is_last: bool) -> float:
    """Multiplications of the rows of a step on suffixes of so many positions."""
    others = shape.output + shape.mlp
    by_output = step.n_by_output * others  # at their own position
    if not is_last:
        total = later * (len(step.sources) * shape.block + len(step.joining_restored) * others)
    else:
        total = len(step.sources) * (later * shape.keys_values + shape.queries)
        total += step.n_suffixes * others
        if later > 1:  # what is put is not looked at
            return total + step.n_suffixes * shape.head
        total += step.n_rows * shape.head
    for put in (step.restored, step.severed):
        total -= len(put.get("mlp", ())) * shape.mlp
        for row in put.get("attn", ()):
            is_continued = row < len(step.sources)
            total -= shape.output + (shape.queries if is_continued else 0)
    return total + by_output


def loop_operations(shape: Shape, n_positions: int, samples: int) -> float:
    """Operations of one whole forward pass for each cell, logits at every position."""
    per_token = shape.n_layers * shape.block + shape.head
    return 2.0 * (1 + samples) * n_positions * per_token * shape.n_layers * n_positions


def ceiling(device: torch.device, dtype: torch.dtype, size: tuple[int, int, int]) -> float:
    """Operations a second of one large matrix product, by the faster library, best of five.

    Args:
        device: where.
        dtype: of the matrices.
        size: `(m, k, n)`.
    """
    m, k, n = size
    left = torch.randn(m, k, device=device).to(dtype)
    layer = nn.Linear(k, n, bias=False, device=device, dtype=dtype)
    best = 0.0
    for context in (nullcontext(), onednn_products(layer)):
        with context, torch.inference_mode():
            for _ in range(5):
                synchronize(device)
                began = time.perf_counter()
                for _ in range(10):
                    layer(left)
                synchronize(device)
                best = max(best, 10 * 2.0 * m * k * n / (time.perf_counter() - began))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
