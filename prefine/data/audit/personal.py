"""Personal data and secrets in texts: numbers proven by their check digits, and patterns that only suggest them.

Nothing here returns a whole secret: a match is shown by a masked form.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Length of an IBAN by country, from the SWIFT IBAN registry.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
# What people and programs put between groups of digits: spaces of any width, at most one line break, hyphens, dashes,
# dots, underscores.
_SPACES = r" \u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff\u00ad"
_DASHES = r"\u2010-\u2015\u2212\-"
_DOTS = r".\u00b7_"
_SPACE = rf"[{_SPACES}]{{1,3}}"
_LINE_BREAK = rf"[{_SPACES}{_DASHES}]?\r?\n[{_SPACES}]{{0,4}}"
_DASH = rf"[{_SPACES}]?[{_DASHES}][{_SPACES}]?"
_BETWEEN = rf"(?:{_LINE_BREAK}|{_DASH}|{_SPACE}|[{_DOTS}])"
_SPACED = re.compile(rf"[{_SPACES}{_DASHES}\r\n]+")
# A word may end where a number begins (card4111…, _4111…_); a single Latin letter makes it
# a code (x4111…).
_AFTER_A_WORD = r"(?:(?<![\w-]\d)|(?<=_\d)|(?<=[^\W\d_]{2}\d)|(?<=[^\W\d_]{2}-\d)|(?<=[^\W\d_\x00-\x7f]\d))"
# Groups of digits: a card, what follows it (expiry, check value) and what comes before it. Not a decimal's
# fraction, and not the account in something that begins as an IBAN does.
_NUMBERS = re.compile(
    # Its first digit comes first: a search for digits is faster than one for what is before them.
    rf"\d{_AFTER_A_WORD}(?<!\d[.,]\d)(?!(?<=\b[A-Za-z]{{2}}\d)\d(?!\d))"
    rf"(?<!\b[A-Z]{{2}}\d\d[{_SPACES}{_DASHES}{_DOTS}]\d)(?:{_BETWEEN}?\d){{12,}}"
)
_GROUP = re.compile(r"\d+")
_GOES_ON = re.compile(r"[A-Za-z\d]|\.\d|-[A-Za-z]")
_MOST_CARD_DIGITS = 19
_CARD_GROUP = 4
# After so many groups of four digits that begin no card, further ones are a table; one in ten would satisfy Luhn.
_TABLE_GROUPS = 2
# Issuer prefixes with their lengths: Visa, Mastercard, American Express, Discover, Diners Club, JCB, UnionPay, Maestro.
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|65|64[4-9]"), (16, 19)),
    (re.compile(r"3(?:0[0-5]|[689])"), (14, 16, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
    (re.compile(r"62"), (16, 17, 18, 19)),
    (re.compile(r"(?:50|5[6-9]|6[37])"), (13, 14, 15, 16, 17, 18, 19)),
)
_IBAN_START = re.compile(r"([A-Za-z]{2})[0-9]{2}(?:(?<![A-Za-z0-9]\w{4})|(?<=[A-Za-z]{2}\w{4}))")
_IBANS = {
    country: re.compile(
        rf"{country}(?:{_BETWEEN}?[A-Za-z0-9]){{{length - 2}}}(?![A-Za-z0-9])", re.IGNORECASE | re.ASCII
    )
    for country, length in _IBAN_LENGTHS.items()
}
_NO_IBAN = re.compile("[^A-Za-z0-9]+")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
# RFC 2606 reserves the first; the others are what people write where an address belongs.
_NOBODY = re.compile(
    r"@(?:.*\.)?(?:example(?:\.[a-z]+)?|[a-z]+\.(?:test|invalid|localhost|example)"
    r"|(?:your)?(?:domain|company|email|provider|website)\.com)$",
    re.IGNORECASE,
)
_PHONE = re.compile(
    rf"(?<![\w+])\+\d{{1,3}}(?:[{_SPACES}{_DASHES}./]?\(?\d{{1,4}}\)?){{2,6}}(?!\w)"
    rf"|(?<![\w.+-])(?:1[{_SPACES}{_DASHES}.])?(?:\([2-9]\d{{2}}\)[{_SPACES}]?|[2-9]\d{{2}}[{_SPACES}{_DASHES}.])"
    rf"[2-9]\d{{2}}[{_SPACES}{_DASHES}.]\d{{4}}(?![\w-])"
)
_FEWEST_PHONE_DIGITS, _MOST_PHONE_DIGITS = 8, 15
_IPV4 = re.compile(r"(?<![\w.-])(?<!version )(?<!Version )\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{0,3}:[0-9A-Fa-f:]{4,34}(?![\w:])")
_PUBLIC_RESOLVERS = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "4.2.2.2", "208.67.222.222"))
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{20,200}|[sr]k_live_[A-Za-z0-9]{16,99}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{60,100}|glpat-[\w-]{20,60}|xox[abeprs]-[A-Za-z0-9-]{10,250}"
    r"|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,60}|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000})(?![A-Za-z0-9])"
)
_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(rf"\d(?:[{_SPACES}{_DASHES}{_DOTS}\r\n()/]{{0,7}}\d){{6}}")
_ADDRESS_SIGN = re.compile(r"\d\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]")
_KEY_STARTS = (
    *("PRIVATE KEY-----", "sk-", "sk_live_", "rk_live_", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("github_pat_", "glpat-", "xox", "AIza", "hf_", "eyJ"),
)


class PersonalMatch(NamedTuple):
    """A place in a text.

    Attributes:
        kind: a key of KINDS_OF_DATA.
        start, end: the characters that it covers.
        hint: its masked form.
    """

    kind: str
    start: int
    end: int
    hint: str


@dataclass(frozen=True)
class DataKind:
    """A kind of personal data.

    Attributes:
        title, several: its name, of one and of more.
        proven: whether a check digit or a strict form proves a match.
        secret: whether it gives access to money or systems.
    """

    title: str
    several: str
    proven: bool
    secret: bool


KINDS_OF_DATA = {
    "iban": DataKind("IBAN", "IBANs", proven=True, secret=True),  # first: its digits may look like a card
    "card": DataKind("payment card number", "payment card numbers", proven=True, secret=True),
    "key": DataKind("key or token", "keys or tokens", proven=False, secret=True),
    "email": DataKind("e-mail address", "e-mail addresses", proven=False, secret=False),
    "phone": DataKind("phone number", "phone numbers", proven=False, secret=False),
    "ip": DataKind("public IP address", "public IP addresses", proven=False, secret=False),
}

_RANKS = {kind: rank for rank, kind in enumerate(KINDS_OF_DATA)}


def luhn_holds(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def iban_holds(iban: str) -> bool:
    """Whether an IBAN without spaces has its country's length and check digits (ISO 13616: the number mod 97 is 1)."""
    if _IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def personal_matches(text: str) -> list[PersonalMatch]:
    """All matches in a text, in order; of two that overlap the kind that is first in KINDS_OF_DATA."""
    found: list[PersonalMatch] = []
    for match in sorted((match for find in _finders(text) for match in find(text)), key=lambda match: match.start):
        if not found or found[-1].end <= match.start:
            found.append(match)
        elif _RANKS[match.kind] < _RANKS[found[-1].kind]:
            found[-1] = match
    return found


def masked(text: str) -> str:
    """The text with every match replaced by its masked form."""
    parts, end = [], 0
    for match in personal_matches(text):
        parts += [text[end : match.start], f"[{match.hint}]"]
        end = match.end
    return "".join([*parts, text[end:]])


def _finders(text: str) -> Iterator[Callable[[str], Iterator[PersonalMatch]]]:
    """The searches that can match. Cheap signs come first, as most texts have none of them."""
    if any(start in text for start in _KEY_STARTS):
        yield _keys
    if "@" in text:
        yield _emails
    if _DIGIT.search(text) is None:
        return
    yield _ibans
    if _LONG_NUMBER.search(text) is not None:
        yield from (_cards, _phones)
    if _ADDRESS_SIGN.search(text) is not None:
        yield _addresses


def _cards(text: str) -> Iterator[PersonalMatch]:
    for run in _NUMBERS.finditer(text):
        groups = [match.span() for match in _GROUP.finditer(text, *run.span())]
        whole = _stretches(text, groups)
        first = passed = 0
        while first < len(groups):
            start, end = groups[first]
            passed = 0 if first in whole else passed
            of_four = end - start == _CARD_GROUP
            in_decimal = first > 0 and text[groups[first - 1][1] : start] == "."
            part: Sequence[tuple[int, int]] = (
                () if in_decimal or (of_four and passed >= _TABLE_GROUPS) else groups[first : first + _MOST_CARD_DIGITS]
            )
            size = _card_size(text, part, whole.get(first, 0))
            if size:
                end = groups[first + size - 1][1]
                digits = _digits(text[start:end])
                yield PersonalMatch("card", start, end, f"card …{digits[-4:]}")
            passed = passed + 1 if of_four and not size else 0
            first += size or 1


def _stretches(text: str, groups: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Groups of digits with single spaces or hyphens between them: the place of the first -> how many."""
    found, first = {0: 1}, 0
    for place in range(1, len(groups)):
        gap = text[groups[place - 1][1] : groups[place][0]]
        if len(gap) != 1 or not _SPACED.fullmatch(gap) or gap == "\n":
            first = place
        found[first] = place - first + 1
    return found


def _card_size(text: str, groups: Sequence[tuple[int, int]], whole: int) -> int:
    """How many of these groups of digits, from the first one on, are a card's; the most that can be, or 0.

    Groups have four digits or more, the last one excepted; the first `whole` ones together may have any. All have the
    same between them, spaces and hyphens taken as one, and one line break at most. Two groups with a dot are a decimal.
    """
    size, digits, usual = 0, "", True
    between: set[str] = set()
    breaks = 0
    for count, (start, end) in enumerate(groups, start=1):
        if count > 1:
            gap = text[groups[count - 2][1] : start]
            between.add(" " if _SPACED.fullmatch(gap) else gap)
            breaks += "\n" in gap
        if len(between) > 1 or breaks > 1 or len(digits) + end - start > _MOST_CARD_DIGITS:
            break
        if not usual and count > whole:
            break
        digits += _digits(text[start:end])
        decimal = count == 2 and "." in between
        if (usual or count == whole) and not decimal and _is_card(digits) and not _GOES_ON.match(text, end):
            size = count
        usual = usual and end - start >= _CARD_GROUP
    return size


def _is_card(digits: str) -> bool:
    issued = any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _ISSUERS)
    return issued and len(set(digits)) > 1 and luhn_holds(digits)


def _digits(text: str) -> str:
    """The digits of a text, of any script (４１１１), as ASCII."""
    return "".join(str(int(character)) for character in text if character.isdecimal())


def _ibans(text: str) -> Iterator[PersonalMatch]:
    for start in _IBAN_START.finditer(text):
        pattern = _IBANS.get(start[1].upper())
        match = pattern.match(text, start.start()) if pattern else None
        if match is None:
            continue
        compact = _NO_IBAN.sub("", match[0]).upper()
        # Words and a short number may have the length and, one in 97, the check digits; digits are half of any IBAN.
        if 2 * len(_digits(compact)) >= len(compact) and iban_holds(compact):
            yield PersonalMatch("iban", *match.span(), f"IBAN {compact[:2]}…{compact[-2:]}")


def _keys(text: str) -> Iterator[PersonalMatch]:
    for match in _KEY.finditer(text):
        if "EXAMPLE" not in match[0].upper():
            hint = "private key" if match[0].startswith("-") else f"key {match[0][:4]}…, {len(match[0])} characters"
            yield PersonalMatch("key", *match.span(), hint)


def _emails(text: str) -> Iterator[PersonalMatch]:
    for match in _EMAIL.finditer(text):
        if not _NOBODY.search(match[0]):
            domain = match[0].rpartition("@")[2]
            yield PersonalMatch(
                "email", *match.span(), f"e-mail {match[0][0]}…@{domain[0]}….{domain.rpartition('.')[2]}"
            )


def _phones(text: str) -> Iterator[PersonalMatch]:
    for match in _PHONE.finditer(text):
        digits = _digits(match[0])
        fictional = digits[-7:-4] == "555" or len(set(digits)) < 3
        if _FEWEST_PHONE_DIGITS <= len(digits) <= _MOST_PHONE_DIGITS and not fictional:
            yield PersonalMatch("phone", *match.span(), f"phone …{digits[-2:]}")


def _addresses(text: str) -> Iterator[PersonalMatch]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            # Three zeros or small numbers are a version, such as 2.0.0.1.
            small = address.version == 4 and all(part < 20 for part in address.packed)
            if address.is_global and not small and match[0] not in _PUBLIC_RESOLVERS:
                yield PersonalMatch("ip", *match.span(), f"IP {match[0][:2]}…")
