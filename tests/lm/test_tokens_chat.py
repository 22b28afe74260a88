"""A prompt as the user's turn of a chat: as transformers writes it, its characters in sight."""

import copy
from dataclasses import replace
from typing import Any

import pytest

import ktrace
from ktrace.config import DatasetConfig
from ktrace.errors import KtraceError
from ktrace.facts import Fact, prompt_facts, role_of_positions
from ktrace.lm.chat import ChatTemplate
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import encode_prompt
from ktrace.tracing.encode import encode_facts
from ktrace.tracing.encoded import EncodedFact
from tests.facts.kinds import KINDS, every_kind
from tests.support.configs import configured
from tests.support.models import micro_llama
from tests.support.tokenizers import spelled

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2's: the assistant's words follow a space, and BOS is in the text.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} "
    "[/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# As Llama 3's: it names today's date.
DATED = (
    "{{ bos_token }}{% if not date %}{% set date = strftime_now('%d %b %Y') %}{% endif %}"
    "Today Date: {{ date }}\n\n"
    "{% for m in messages %}## {{ m.role }}\n\n{{ m.content | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}## assistant\n\n{% endif %}"
)
# As Qwen 3's: it thinks unless it is asked not to.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<done>{% endif %}{% endif %}"
)
FACT = Fact(7, "Where is the Kingdom? It is in", "Kingdom", "Paris")


def tokenizer_with(template: Any, kind: str = "tiktoken_style") -> Any:
    tokenizer = copy.deepcopy(KINDS[kind]())
    tokenizer.chat_template = template
    return tokenizer


def model_with(template: Any, kind: str = "tiktoken_style") -> LanguageModel:
    tokenizer = tokenizer_with(template, kind)
    return language_model(micro_llama(2, vocabulary=len(tokenizer)), tokenizer)


def encoded(lm: LanguageModel, fact: Fact, **keys: Any) -> EncodedFact:
    settings = configured(DatasetConfig, name="made-up", path=None, chat=True, **keys)
    [found] = encode_facts(lm, [fact], settings)
    return found


@every_kind
@pytest.mark.parametrize(
    ("template", "between"),
    [(CHATML, ""), (INST, " "), (DATED, ""), (THINKING, "")],
    ids=["ChatML", "INST", "dated", "thinking"],
)
def test_a_chat_is_what_transformers_makes_of_it(kind: str, template: str, between: str) -> None:
    lm = model_with(template, kind)
    found = encoded(lm, FACT, answer="full")
    text = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": FACT.prompt}],
        chat_template=template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'"),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert FACT.prompt in text
    assert found.separator == between
    whole = lm.tokenizer(f"{text}{between}Paris", add_special_tokens=False)["input_ids"]
    assert [*found.prompt.input_ids, *found.answer_ids] == whole
    spoken = b"".join(spelled(lm.tokenizer, found.answer_ids))
    assert spoken.strip() == b"Paris"
    # The subject, and not what the template says around it.
    subject = spelled(lm.tokenizer, found.prompt.input_ids[found.span.start : found.span.stop])
    assert b"".join(subject).strip() == b"Kingdom"
    roles = role_of_positions(found.span, len(found.prompt.input_ids))
    assert roles[: found.span.start] == (None,) * found.span.start
    assert found.span.start > len(encode_prompt(lm.tokenizer, "Where is the").input_ids) - 1


@every_kind
def test_offsets_in_a_chat_are_the_prompts_own(kind: str) -> None:
    lm = model_with(CHATML, kind)
    prompt = encoded(lm, FACT).prompt
    held = "".join(FACT.prompt[first:last] for first, last in prompt.offsets)
    assert held.replace(" ", "") == FACT.prompt.replace(" ", "")
    assert (prompt.offsets[0], prompt.offsets[-1]) == ((0, 0), (len(FACT.prompt),) * 2)


def test_bos_is_there_once(caplog: pytest.LogCaptureFixture) -> None:
    """The text of a chat has its own special tokens; the tokenizer's would be the second."""
    lm = model_with(INST)
    assert encoded(lm, FACT).prompt.input_ids.count(lm.tokenizer.bos_token_id) == 1
    assert not caplog.messages


def test_a_line_break_that_a_chat_does_not_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lm = model_with(CHATML)
    [broken] = prompt_facts(f"{FACT.prompt}\n", FACT.subject, FACT.attribute).facts
    for separator in ("auto", "space", "none"):
        caplog.clear()
        plain = encoded(lm, FACT, separator=separator)
        assert not caplog.messages
        assert encoded(lm, broken, separator=separator) == plain
        assert caplog.messages == [
            "1 of 1 prompts end in line breaks, which dataset.chat=true drops (first known_id=0)"
        ]


def test_the_separator_of_a_chat_may_be_chosen() -> None:
    lm = model_with(CHATML)
    spaced = encoded(lm, FACT, separator="space", answer="full")
    assert spaced.separator == " "
    assert spelled(lm.tokenizer, spaced.answer_ids)[0].startswith(b" ")


def test_a_template_that_names_today_names_the_same_day_always() -> None:
    assert "Today Date: 26 Jul 2024\n" in ChatTemplate(tokenizer_with(DATED)).frame.before
    other = DATED.replace("'%d %b %Y'", "date_format")
    with pytest.raises(KtraceError, match=r"^dataset\.chat=true: .* hangs on the current date"):
        ChatTemplate(tokenizer_with(other))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer in model.path has no chat template; a model that was trained on"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "holds the prompt 2 times"),
        ("hello", "holds the prompt 0 times"),
        ("{{ messages[0].content", "the chat template of model.path fails: "),
        ("{{ raise_exception('no users') }}", "the chat template of model.path fails: no users"),
        ({"rag": CHATML}, "fails: This model has multiple chat templates with no default"),
    ],
)
def test_a_template_that_is_refused(template: Any, message: str) -> None:
    with pytest.raises(KtraceError, match=r"^dataset\.chat=true: ") as raised:
        encoded(model_with(template), FACT)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_template_that_changes_a_prompt_is_refused() -> None:
    lm = model_with("{{ messages[0].content | replace('It is', 'It was') }}\nAnswer:")
    with pytest.raises(KtraceError, match=r"^known_id=7: the chat template .* changes the prompt"):
        encoded(lm, FACT)
    other = replace(FACT, prompt="Where is the Kingdom", subject_start=13)
    assert encoded(lm, other).prompt.input_ids  # it does not change all of them


def test_a_chat_is_traced() -> None:
    lm = model_with(CHATML)
    trace = ktrace.trace(lm, FACT.prompt, "Kingdom", chat=True, samples=2)
    assert trace.input_ids == encoded(lm, FACT).prompt.input_ids
    plain = ktrace.trace(lm, FACT.prompt, "Kingdom", samples=2)
    assert len(trace.input_ids) > len(plain.input_ids)
    with pytest.raises(KtraceError, match=r"^dataset\.chat=true: the tokenizer in model\.path"):
        ktrace.trace(model_with(None), FACT.prompt, "Kingdom", chat=True)
