"""A random model saved with its tokenizer, and facts that it "knows"."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ktrace.lm.tokens import answer_token_ids, encode_prompt
from tests.support.models import micro_llama

PROMPTS = [
    ("The old lighthouse at {} stands in", "Cape Morrow"),
    ("{} is a town in the land of", "Upper Tallow"),
    ("In the story, {} plays the game of", "Captain Ferris Vane"),
    ("The river {} ends its way in", "Lissom"),
    ("People in {} speak", "the Hollow Isles"),
    ("The author of {} was born in", "A Quiet Harvest"),
]


def train_tokenizer(texts: list[str], vocabulary: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts a BOS token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_random_model(folder: Path, seed: int) -> Path:
    """Save a sharpened random Llama and a tokenizer."""
    tokenizer = train_tokenizer([template.format(subject) for template, subject in PROMPTS])
    model = micro_llama(3, seed=seed, vocabulary=len(tokenizer))
    # Only whole words are ever predicted, so that every prediction can be written as an answer.
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    with torch.no_grad():
        for token, piece in enumerate(pieces):
            if not (piece.startswith("Ġ") and piece[1:].isalpha() and len(piece) > 3):
                model.lm_head.weight[token] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_known_facts(path: Path, folders: list[Path], n_answer: int = 1) -> Path:
    """Write facts whose answers the models predict, and a last one that none predicts."""
    records = []
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        for template, subject in PROMPTS:
            prompt = template.format(subject)
            ids = encode_prompt(tokenizer, prompt).input_ids
            predicted: tuple[int, ...] = ()
            for _ in range(n_answer):
                logits = model(torch.tensor([[*ids, *predicted]])).logits[0, -1]
                predicted = (*predicted, int(logits.argmax()))
            answer = tokenizer.decode(predicted).strip()
            assert answer_token_ids(tokenizer, prompt, answer) == predicted
            records.append((prompt, subject, answer))
    records.append((PROMPTS[0][0].format("Port Nowhere"), "Port Nowhere", "of"))
    with path.open("w") as stream:
        for number, (prompt, subject, answer) in enumerate(records):
            record = {
                "known_id": 100 + number,
                "prompt": prompt,
                "subject": subject,
                "attribute": answer,
            }
            stream.write(json.dumps(record) + "\n")
    return path
