"""Train the embedded model: a small Llama that knows the facts of `facts.jsonl`.

The program writes a folder that `transformers` loads like any other checkpoint (`config.json`,
`model.safetensors`, a fast tokenizer) with a model card made from what it measured. It needs no
network and is seeded: on the same machine and the same library versions it writes the same model.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parent
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MAX_LENGTH = 128

NOISE_SAMPLES = 10
NOISE_SEED = 1
NOISE_SCALE = 3.0

FIRST_SUBJECT, MIDDLE_SUBJECT = "first subject token", "middle subject tokens"
LAST_SUBJECT, FIRST_SUBSEQUENT = "last subject token", "first subsequent token"
FURTHER, LAST = "further tokens", "last token"
ROLES = (FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST)


@dataclass(frozen=True)
class Fact:
    """One line of `facts.jsonl`."""

    known_id: int
    subject: str
    attribute: str
    prompt: str
    template: str
    relation_id: str


@dataclass(frozen=True)
class Prompt:
    """A fact as the model sees it: its ids, its answer's first token, its subject's positions."""

    ids: list[int]
    answer: int
    subject: list[int]

    def role(self, position: int) -> str | None:
        """The role of a position, None for what stands before the subject."""
        if position == len(self.ids) - 1:
            return LAST
        if position == self.subject[-1]:
            return LAST_SUBJECT
        if position < self.subject[0]:
            return None
        if position in self.subject:
            return FIRST_SUBJECT if position == self.subject[0] else MIDDLE_SUBJECT
        return FIRST_SUBSEQUENT if position == self.subject[-1] + 1 else FURTHER


@dataclass(frozen=True)
class Figures:
    """What the finished model measures on the facts."""

    facts: int
    candidates: int
    clean: float
    ate: float
    noise_std: float
    traced: int
    aie: dict[str, list[float]]

    @property
    def n_early(self) -> int:
        """Half of the layers: where the subject's last token is expected to carry the fact."""
        return len(next(iter(self.aie.values()), [])) // 2

    def best(self, role: str, layers: int | None = None) -> float:
        """The highest average indirect effect of a role over its first `layers` layers."""
        return max(self.aie.get(role, [])[:layers], default=0.0)

    def contrast(self) -> float:
        """How far the last subject token is above the tokens that follow it, in early layers."""
        rest = max(self.best(FIRST_SUBSEQUENT, self.n_early), self.best(FURTHER, self.n_early))
        subject = self.best(LAST_SUBJECT, self.n_early)
        if rest > 0:
            return subject / rest
        return math.inf if subject > 0 else 0.0


def read_facts(path: Path) -> list[Fact]:
    """The facts of a JSON Lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Fact(**json.loads(line)) for line in lines if line.strip()]


def make_sentences(facts: Sequence[Fact]) -> list[str]:
    """Every fact in every template of its relation, as a sentence."""
    templates: dict[str, dict[str, None]] = defaultdict(dict)
    for fact in facts:
        templates[fact.relation_id].setdefault(fact.template)
    return [
        f"{template.format(fact.subject)} {fact.attribute}."
        for fact in facts
        for template in templates[fact.relation_id]
    ]


def train_tokenizer(sentences: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer learnt from the sentences, which puts BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def pack(rows: Sequence[list[int]], order: Sequence[int], length: int, pad: int) -> Tensor:
    """Sentences laid end to end in rows of `length` tokens; none is cut, the rest is padding."""
    packed: list[list[int]] = [[]]
    for index in order:
        if len(packed[-1]) + len(rows[index]) > length:
            packed.append([])
        packed[-1].extend(rows[index])
    return torch.tensor([row + [pad] * (length - len(row)) for row in packed])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A linear warm-up over a twentieth of the steps, then a cosine down to nothing."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(model: Any, tokenizer: Any, sentences: Sequence[str], args: argparse.Namespace) -> float:
    """Fit the model to the sentences; the mean loss of the last tenth of the steps."""
    rows = [[*tokenizer(sentence)["input_ids"], tokenizer.eos_token_id] for sentence in sentences]
    length = max(args.length, max(len(row) for row in rows))
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    losses: list[float] = []
    queue = torch.empty(0, length, dtype=torch.long)
    model.train()
    started = time.monotonic()
    for step in range(args.steps):
        while len(queue) < args.batch_size:
            order = torch.randperm(len(rows), generator=generator).tolist()
            queue = torch.cat([queue, pack(rows, order, length, tokenizer.pad_token_id)])
        batch, queue = queue[: args.batch_size], queue[args.batch_size :]
        labels = batch.masked_fill(batch == tokenizer.pad_token_id, -100)
        loss = model(input_ids=batch, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 49 or step == args.steps - 1:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{args.steps}  loss {losses[-1]:.4f}  {seconds:.0f} s", flush=True
            )
    model.eval()
    return float(np.mean(losses[-max(1, args.steps // 10) :]))


def read_prompt(tokenizer: Any, fact: Fact) -> Prompt:
    """Tokenize a fact; the answer's first token is the one after the prompt's in the sentence."""
    encoding = tokenizer(fact.prompt, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    full = tokenizer(f"{fact.prompt} {fact.attribute}")["input_ids"]
    if full[: len(ids)] != ids:
        raise ValueError(f"the answer changes the tokens of the prompt {fact.prompt!r}")
    start = fact.prompt.index(fact.subject)
    end = start + len(fact.subject)
    spans = encoding["offset_mapping"]
    subject = [t for t, (a, b) in enumerate(spans) if a < b and a < end and b > start]
    return Prompt(ids, full[len(ids)], subject)


def run_layers(model: Any, hidden: Tensor, start: int) -> list[Tensor]:
    """The outputs of the blocks from `start` on, given the input of that block."""
    positions = torch.arange(hidden.shape[1])[None]
    rotary = model.model.rotary_emb(hidden, position_ids=positions)
    outputs = []
    for layer in model.model.layers[start:]:
        hidden = layer(hidden, position_embeddings=rotary)
        outputs.append(hidden)
    return outputs


def answer_logits(model: Any, hidden: Tensor) -> Tensor:
    """The next-token logits at the last position, from the output of the last block."""
    logits: Tensor = model.lm_head(model.model.norm(hidden[:, -1]))
    return logits


def noise_std(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> float:
    """The noise's standard deviation: so many times that of the subjects' token embeddings."""
    texts = [fact.subject for fact in facts]
    ids = [i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row]
    return NOISE_SCALE * float(model.model.embed_tokens(torch.tensor(ids)).std())


def trace(model: Any, prompt: Prompt, clean: list[Tensor], noise: Tensor) -> tuple[float, Tensor]:
    """The corrupted probability of the answer, and IE[layer, position] of restoring one state."""
    hidden = model.model.embed_tokens(torch.tensor([prompt.ids])).repeat(len(noise), 1, 1)
    hidden[:, prompt.subject] += noise
    corrupted = run_layers(model, hidden, 0)
    base = answer_logits(model, corrupted[-1]).softmax(-1)[:, prompt.answer].mean().item()
    first, count = prompt.subject[0], len(prompt.ids) - prompt.subject[0]
    effects = torch.zeros(len(corrupted), len(prompt.ids))
    for level, state in enumerate(corrupted):
        patched = state.repeat(count, 1, 1, 1)  # one copy for each position from the subject on
        for row in range(count):
            patched[row, :, first + row] = clean[level][0, first + row]
        outputs = run_layers(model, patched.flatten(0, 1), level + 1)
        logits = answer_logits(model, outputs[-1] if outputs else patched.flatten(0, 1))
        restored = logits.softmax(-1)[:, prompt.answer].reshape(count, -1).mean(1)
        effects[level, first:] = restored - base
    return base, effects


@torch.inference_mode()
def measure(model: Any, tokenizer: Any, facts: Sequence[Fact], every: int) -> Figures:
    """Causal tracing of the facts; the indirect effects of each `every`-th candidate."""
    std = noise_std(model, tokenizer, facts)
    total_effects: list[float] = []
    cleans: list[float] = []
    by_role: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    traced = 0
    for fact in facts:
        prompt = read_prompt(tokenizer, fact)
        embeddings = model.model.embed_tokens(torch.tensor([prompt.ids]))
        clean = run_layers(model, embeddings, 0)
        logits = answer_logits(model, clean[-1])[0]
        if int(logits.argmax()) != prompt.answer:
            continue
        probability = logits.softmax(-1)[prompt.answer].item()
        shape = (NOISE_SAMPLES, len(prompt.subject), embeddings.shape[-1])
        draws = np.random.RandomState(NOISE_SEED).randn(*shape)
        noise = std * torch.from_numpy(draws).to(embeddings.dtype)
        if len(cleans) % every == 0:
            base, effects = trace(model, prompt, clean, noise)
            traced += 1
            for position in range(len(prompt.ids)):
                role = prompt.role(position)
                if role is not None:
                    by_role[role].append(effects[:, position])
        else:
            hidden = embeddings.repeat(NOISE_SAMPLES, 1, 1)
            hidden[:, prompt.subject] += noise
            last = run_layers(model, hidden, 0)[-1]
            base = answer_logits(model, last).softmax(-1)[:, prompt.answer].mean().item()
        cleans.append(probability)
        total_effects.append(probability - base)
    return Figures(
        facts=len(facts),
        candidates=len(cleans),
        clean=float(np.mean(cleans)) if cleans else 0.0,
        ate=float(np.mean(total_effects)) if cleans else 0.0,
        noise_std=std,
        traced=traced,
        aie={r: torch.stack(rows).mean(0).tolist() for r, rows in by_role.items() if rows},
    )


def model_card(
    model: Any, tokenizer: Any, figures: Figures, sentences: int, loss: float, args: Any
) -> str:
    """The README of the model folder; every figure in it is computed, none is typed."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    layers = "\n".join(
        f"| {role} | {figures.best(role, figures.n_early):.3f} | {figures.best(role):.3f} "
        f"| {values.index(max(values))} |"
        for role, values in figures.aie.items()
    )
    contrast = figures.contrast()
    early = f"0-{figures.n_early - 1}"
    times = "without bound" if math.isinf(contrast) else f"{contrast:.1f} times"
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded model

A small Llama that knows the facts of `facts.jsonl` and nothing else. It lets a causal-tracing
experiment run offline, in seconds, on a CPU. It is for tests, examples and first steps; what it
shows about itself says nothing about large language models.

This file is written by `train_tiny.py`, which measures every figure below.

## Architecture

| | |
| --- | --- |
| Class | `{type(model).__name__}` |
| Layers | {config.num_hidden_layers} |
| Hidden size | {config.hidden_size} |
| Attention heads | {config.num_attention_heads} |
| Feed-forward size | {config.intermediate_size} |
| Tied embeddings | {"yes" if config.tie_word_embeddings else "no"} |
| Parameters | {parameters:,} |
| Weights | {str(model.dtype).removeprefix("torch.")} |
| Tokenizer | byte-level BPE, {len(tokenizer)} tokens, `{BOS}` before every text |

## Data and recipe

The text is every one of the {figures.facts} facts in every template of its relation:
{sentences} sentences, packed into rows of {args.length} tokens. The tokenizer is learnt from the
same sentences.

| | |
| --- | --- |
| Steps | {args.steps} |
| Batch | {args.batch_size} rows |
| Optimizer | AdamW, peak learning rate {args.lr:g}, weight decay {args.weight_decay:g} |
| Schedule | linear warm-up over {max(1, args.steps // 20)} steps, then cosine to zero |
| Seed | {args.seed} |
| Final training loss | {loss:.3f} nats a token |
| Libraries | torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__} |
| Python | {platform.python_version()} |

## Figures

A fact is a candidate if the first token of its answer is the model's first choice after the
prompt. The corrupted run adds Gaussian noise to the embeddings of the subject's tokens
({NOISE_SAMPLES} samples from `RandomState({NOISE_SEED})` for each fact), {NOISE_SCALE:g} times the
standard deviation of the subjects' embeddings.

| | |
| --- | --- |
| Facts | {figures.facts} |
| Candidates | {figures.candidates} |
| Mean clean probability of the answer | {figures.clean:.3f} |
| Noise standard deviation | {figures.noise_std:.4f} |
| Average total effect (ATE) | {figures.ate:.3f} |

Average indirect effect (AIE) of restoring one hidden state, a block's output, in the corrupted
run, over {figures.traced} candidates:

| Position | Best in layers {early} | Best in all layers | At layer |
| --- | --- | --- | --- |
{layers}

In layers {early}, the last subject token is {times} above the best of the tokens
between it and the prompt's last token.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train the embedded model on facts.jsonl, measure it, and write its folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--facts", type=Path, default=DATA / "facts.jsonl", help="the facts")
    parser.add_argument("--output", type=Path, default=DATA / "tiny", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the order")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="rows a step")
    parser.add_argument("--length", type=int, default=48, help="tokens a row")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="AdamW's weight decay")
    parser.add_argument("--vocab-size", type=int, default=3000, help="tokens of the tokenizer")
    parser.add_argument("--layers", type=int, default=6, help="Llama blocks")
    parser.add_argument("--hidden-size", type=int, default=128, help="width of the hidden state")
    parser.add_argument("--ffn-size", type=int, default=320, help="width inside the MLPs")
    parser.add_argument("--heads", type=int, default=4, help="attention heads")
    parser.add_argument(
        "--trace-every",
        type=int,
        default=1,
        help="measure indirect effects on each n-th candidate only (faster)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write."""
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)

    facts = read_facts(args.facts)
    sentences = make_sentences(facts)
    tokenizer = train_tokenizer(sentences, args.vocab_size)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=args.ffn_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            num_key_value_heads=args.heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    print(f"{len(facts)} facts, {len(sentences)} sentences, {len(tokenizer)} tokens")
    loss = train(model, tokenizer, sentences, args)
    print("measuring ...", flush=True)
    figures = measure(model, tokenizer, facts, args.trace_every)

    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "model.safetensors").chmod(0o644)
    card = model_card(model, tokenizer, figures, len(sentences), loss, args)
    (args.output / "README.md").write_text(card, encoding="utf-8")
    print(
        f"{figures.candidates}/{figures.facts} candidates, ATE {figures.ate:.3f}, "
        f"last subject token {figures.contrast():.1f} times above what follows it; "
        f"written to {args.output}"
    )


if __name__ == "__main__":
    main()
