"""Answers as the checks read them: words, sentences, list lines, phrases; endless repetition."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import groupby

import regex

from prefine.degeneration import is_looping, is_stuck

_WORD = regex.compile(r"\S*[\p{L}\p{N}]\S*")
_LIST_MARK = regex.compile(r"^[ \t]*(?:(?P<bullet>[-*•–+])|(?P<number>\d{1,3}[.)]))[ \t]+(?=\S)", regex.MULTILINE)
_HEADING = regex.compile(r"^[ \t]*#{1,6}[ \t]+", regex.MULTILINE)
_EMPHASIS = regex.compile(r"\*\*|__|`|(?<![\w*])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w*])")
# Abbreviations and initials do not end a sentence; a stop within a number is not followed by white space.
_ABBREVIATION = regex.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|[A-Z]|a\.m|p\.m)\.(?=\s+\S)")
_SENTENCE_END = regex.compile(r"[.!?…]+[\"'”’)*]*(?=\s|$|\p{Han})|[。！？]|\n\s*\n")
# Units of repetition: words, and single characters of scripts that write no spaces.
_UNIT = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[\p{L}\p{N}\p{M}]+")
# A character that repeats on purpose: rules and table lines of Markdown, dot leaders.
_SAME_PIECE = regex.compile(r"([\p{L}\p{N}]{1,8}?)\1{15,}|([^\p{L}\p{N}\s=_|.*#-]{1,4}?)\2{23,}")
# This often the same word in a row is endless repetition; a table of zeros has fewer.
_SAME_WORDS = 5
# Characters of the shortest sentence whose repetition is an echo.
_ECHO = 8
_LETTER = r"[\p{Latin}\p{Cyrillic}\p{Greek}\p{Nd}]"


def words(text: str) -> list[str]:
    """Words between white space, without marks of lists, headings and emphasis."""
    found: list[str] = _WORD.findall(without_markdown(text))
    return found


def sentences(text: str) -> list[str]:
    """Sentences by their end marks; a paragraph's end also ends one."""
    joined = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), without_markdown(text))
    return [part for part in _SENTENCE_END.split(joined) if _WORD.search(part)]


def list_lines(text: str, marker: str = "any") -> list[str]:
    """Lines that begin with a list mark: `bullet`, `number` or `any`; without the mark."""
    found = []
    for line in text.splitlines():
        mark = _LIST_MARK.match(line)
        if mark and (marker == "any" or mark[marker]):
            found.append(line[mark.end() :].strip())
    return found


def filled_lines(text: str) -> list[str]:
    """Lines with a letter or a digit, stripped."""
    return [line.strip() for line in text.splitlines() if _WORD.search(line)]


def paragraphs(text: str) -> list[str]:
    """Parts between empty lines."""
    return [part.strip() for part in regex.split(r"\n[ \t]*\n", text) if _WORD.search(part)]


def without_markdown(text: str) -> str:
    """The text without marks of lists, headings and emphasis."""
    return str(_EMPHASIS.sub("", _HEADING.sub("", _LIST_MARK.sub("", text))))


def unwrapped(text: str) -> str:
    """The text without white space, emphasis and one pair of quotation marks around it."""
    bare = _EMPHASIS.sub("", _HEADING.sub("", text)).strip()
    if len(bare) > 1 and bare[0] + bare[-1] in ('""', "“”", "''", "‘’", "«»"):
        bare = bare[1:-1].strip()
    return str(bare)


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Folded for comparison: no case, no accents, straight apostrophes, single spaces, no emphasis."""
    decomposed = unicodedata.normalize("NFKD", _EMPHASIS.sub("", text).replace("’", "'").replace("‘", "'"))
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(unicodedata.normalize("NFKC", bare).casefold().split())


def place_of(phrase: str, text: str) -> int:
    """Where a phrase first stands as whole words, in the folded text; -1 if nowhere. `refund*` finds `refunded`."""
    match = _phrase(phrase).search(plain(text))
    return int(match.start()) if match else -1


def places_of(phrase: str, text: str) -> list[tuple[int, int]]:
    """Beginning and end of each place where a phrase stands as whole words, in the folded text."""
    return [match.span() for match in _phrase(phrase).finditer(plain(text))]


def count_of(phrase: str, text: str) -> int:
    """How often a phrase stands in the text as whole words."""
    return len(_phrase(phrase).findall(plain(text)))


@lru_cache(maxsize=4096)
def _phrase(phrase: str) -> regex.Pattern[str]:
    """Whole words of scripts with spaces; within other scripts a phrase needs no boundary."""
    stem = plain(phrase.removesuffix("*"))
    end = "" if phrase.endswith("*") else f"(?!{_LETTER})"
    return regex.compile(f"(?<!{_LETTER}){regex.escape(stem)}{end}")


def is_answer(text: str) -> bool:
    """Whether a text has content at all: not blank, and not endless repetition."""
    units = _UNIT.findall(text)
    if not units or _SAME_PIECE.search(text):
        return False
    number: dict[str, int] = {}
    ids = [number.setdefault(unit.casefold(), len(number)) for unit in units]
    longest_run = max(sum(1 for _ in same) for _, same in groupby(ids))
    return longest_run < _SAME_WORDS and not is_stuck(ids) and not is_looping(ids)


def without_echo(answer: str, question: str) -> str:
    """The answer without the question and its sentences, where it repeats them; short sentences stay."""
    for sentence in (question.rstrip(" .!?。！？…"), *sentences(question)):
        if len(sentence.strip()) >= _ECHO:
            spelled = r"\s+".join(map(regex.escape, sentence.split()))
            answer = regex.sub(spelled + r"[\s.!?。！？…]*", " ", answer, flags=regex.IGNORECASE)
    return answer
