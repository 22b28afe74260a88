"""What folders of models and datasets are called, where the config names none."""

import hashlib
import os
import re
import unicodedata
from pathlib import PurePath, PurePosixPath, PureWindowsPath

# One folder level, portable, and never "." or "..": a name from a config must not leave output_dir.
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{,199}")


def pure_path(text: str) -> PurePath:
    """A path of the system that it was written on: `C:\\models\\gpt2` ends in gpt2 anywhere."""
    is_windows = os.name == "nt" or re.match(r"[A-Za-z]:[\\/]|\\\\", text)
    return PureWindowsPath(text) if is_windows else PurePosixPath(text)


def path_name(end: str) -> str:
    """A folder for the end of a path: itself, where it can name one, else what is left of it.

    Args:
        end: the last part of a path. Nothing may be left of it.
    """
    if FOLDER_NAME.fullmatch(end):
        return end
    spelled = "".join(map(_in_ascii, unicodedata.normalize("NFC", end)))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", spelled).lstrip("._+-")[:200].rstrip("-")


def hub_name(repository: object, *chosen: object) -> str:
    """A folder for one split of one subset of a repository, such as `cities-fr-test`."""
    parts = [PurePosixPath(str(repository)).name, *(str(part) for part in chosen if part)]
    return "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part).strip("-") for part in parts)


def prompt_name(subject: object, prompt: object, *rest: object) -> str:
    """A folder for one prompt: readable, and another one for every other prompt.

    Args:
        subject: as in the config, and so on.
        prompt: named where there is no subject.
        rest: `attribute, subject_start, also, corrupted_prompt, foil`.
    """
    *others, corrupted, foil = rest
    pair = () if corrupted is None and foil is None else (corrupted, foil)
    # No other answers, and no pair, as by default.
    rest = (prompt, *(part for part in others if part != []), *pair)
    named = prompt if subject is None else subject
    spelled = "".join(map(_in_ascii, unicodedata.normalize("NFC", str(named))))
    slug = re.sub(r"[^a-z0-9]+", "-", spelled.lower()).strip("-")[:24].strip("-")
    digest = hashlib.sha256(repr((subject, *rest)).encode(errors="surrogatepass")).hexdigest()
    return "-".join(part for part in ("prompt", slug, digest[:8]) if part)


def _in_ascii(letter: str) -> str:
    """A letter as a folder's name may hold it: é is e, ø is o, 中 is u4e2d."""
    plain = [c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)]
    if "".join(plain).isascii():
        return "".join(plain)
    latin = re.match(r"LATIN \w+ LETTER (?:SHARP )?([A-Z]+)\b", unicodedata.name(letter, ""))
    if latin:
        return latin[1].lower()
    return f"u{ord(letter):04x}" if letter.isalnum() else "-"
