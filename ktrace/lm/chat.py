"""A prompt as the user's turn of a chat: what a tokenizer's chat template puts around it."""

import re
from datetime import date

from ktrace.errors import KtraceError
from ktrace.lm.tokens import Frame, Tokenizer

# Some templates name today's date. Numbers must not hang on the day: this one is what Llama 3.1's
# own template takes where it cannot ask.
_TODAY = date(2024, 7, 26)
_NOW = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<format>.*?)(?P=quote)\s*\)")
# No template has these words; letters alone, so that none changes them.
_PROMPT, _ANSWER = "ktracepromptmark", "ktraceanswermark"


class ChatTemplate:
    """The template of a tokenizer.

    Attributes:
        frame: what stands around a prompt, up to where the assistant's turn begins.
        separator: what stands between that and an answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read it.

        Raises:
            KtraceError: there is none, or it does not take one prompt as it is.
        """
        if not tokenizer.chat_template:
            raise KtraceError(
                "dataset.chat=true: the tokenizer in model.path has no chat template; a model that "
                "was trained on chats has one, for others leave dataset.chat=false"
            )
        self._tokenizer = tokenizer
        parts = self._rendered(_PROMPT).split(_PROMPT)
        if len(parts) != 2:
            raise KtraceError(
                f"dataset.chat=true: the chat template of model.path holds the prompt "
                f"{len(parts) - 1} times, and once is needed"
            )
        before, after = parts
        self.frame = Frame(before, after, adds_special=False)
        self.separator = self._between()

    def require(self, prompt: str, where: str) -> None:
        """Hold the template to what it does with other prompts.

        Args:
            prompt: to be framed.
            where: whose it is, for the message.

        Raises:
            KtraceError: it changes this one, or what is around it.
        """
        if self._rendered(prompt) != self.frame.around(prompt):
            raise KtraceError(
                f"{where}: the chat template of model.path changes the prompt {prompt!r:.100}, so "
                "its characters cannot be followed (dataset.chat=true)"
            )

    def _between(self) -> str:
        """Blanks that the template puts between the beginning of a turn and what is said in it."""
        whole = self._rendered(_PROMPT, _ANSWER)
        before, _, rest = whole.partition(self.frame.around(_PROMPT))
        between = rest.partition(_ANSWER)[0]
        known = not before and _ANSWER in rest and not between.strip()
        return between if known else ""

    def _rendered(self, prompt: str, *answers: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        turns += [{"role": "assistant", "content": answer} for answer in answers]
        try:
            template = self._tokenizer.get_chat_template()
            fixed = _NOW.sub(lambda found: repr(_TODAY.strftime(found["format"])), template)
            if "strftime_now(" in fixed:
                raise KtraceError(
                    "dataset.chat=true: the chat template of model.path hangs on the current date"
                )
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=fixed,
                tokenize=False,
                add_generation_prompt=not answers,
                enable_thinking=False,  # the answer is read where the turn begins
            )
        except KtraceError:
            raise
        except Exception as error:  # a template is a program, and each fails its own way
            reason = " ".join(str(error).split())
            raise KtraceError(
                f"dataset.chat=true: the chat template of model.path fails: {reason:.200}"
            ) from error
        return text
