"""Check digits prove cards and IBANs; a match is never shown as a whole."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.data.audit.personal import iban_holds, luhn_holds, masked, personal_matches

# Published examples: Visa's and American Express's test numbers; ISO 13616 and national banks' IBANs.
CARDS = ("4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "6011111111111117", "4222222222222")
IBANS = ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606", "NO9386011117947")


def kinds(text: str) -> list[str]:
    return [match.kind for match in personal_matches(text)]


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_proven_by_its_check_digit(card: str) -> None:
    assert kinds(f"My card is {card}, thanks.") == ["card"]
    other = card[:-1] + str((int(card[-1]) + 1) % 10)
    assert kinds(f"My card is {other}, thanks.") == []


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "around",
    [
        "{} 12/25",
        "{} 123",
        "{} 12/25 123",
        "{}-1234",
        "card no.{}",
        "{} 1225",
        "12 {} 12/25",
        "2024 {}",
        "a,{}, b",
        "{}.",
    ],
)
def test_what_stands_beside_a_card_does_not_hide_it(card: str, around: str) -> None:
    text = around.format(card)
    (match,) = personal_matches(text)
    assert match.kind == "card"
    assert text[: match.start] == around.partition("{}")[0] and match.end >= text.index(card) + len(card)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    "between",
    ["\u00a0", "\u202f", "\u2009", "\u2007", "\u200b", "–", "\u2011", "−", ".", "·", "_", "  ", " - ", " – "],
    ids=ascii,
)
def test_whatever_people_put_between_groups_of_digits(card: str, between: str) -> None:
    groups = card.replace("-", " ").split(" ")
    groups = groups if len(groups) > 1 else [card[:4], card[4:8], card[8:12], card[12:]]
    written = between.join(groups)
    text = f"My card is {written}, thanks."
    (match,) = personal_matches(text)
    assert (match.kind, text[match.start : match.end]) == ("card", written)
    other = between.join([*groups[:-1], groups[-1][:-1] + str((int(card[-1]) + 1) % 10)])
    assert kinds(f"My card is {other}, thanks.") == []


@pytest.mark.parametrize(
    "around",
    [
        "_{}_",
        "*{}*",
        "card{}",
        "Visa-{}",
        "no_{}",
        "卡{}です",
        "{}_1225",
        "Jane,{},12/25,123",
        "{}- yes",
        "1200 1300\n{}",
        "12\n{}\n13",
    ],
)
def test_words_and_marks_may_touch_a_card(around: str) -> None:
    for card in ("4111 1111 1111 1111", "4111111111111111", "4111\u00a01111\u00a01111\u00a01111"):
        text = around.format(card)
        (match,) = personal_matches(text)
        assert match.kind == "card" and text[match.start :].startswith(card)


@pytest.mark.parametrize(
    "card",
    ["4111 1111\n1111 1111", "4111 1111 1111\r\n  1111", "4111-1111-\n1111-1111", "４１１１ １１１１ １１１１１１１１"],
)
def test_a_card_over_two_lines_or_in_wide_digits(card: str) -> None:
    assert [match.hint for match in personal_matches(f"It is {card}.")] == ["card …1111"]


def test_several_cards_after_each_other_are_several() -> None:
    found = personal_matches("4111 1111 1111 1111 5555 5555 5555 4444 123")
    assert [match.hint for match in found] == ["card …1111", "card …4444"]


@pytest.mark.parametrize(
    "text",
    [
        "0.4111111111111111 and 3,4111111111111111",
        "1200 1300 1400 4111 1111 1111 1111 1500",  # a table of numbers
        "4 111111111111111 12",
        "41111111111111112 and x4111111111111111",
        "4111111111111111x and a-4111111111111111 and 4111111111111111-b",
        "4111\n1111\n1111\n1111",  # a column of numbers
        "4111.1111 1111.1111 and 4111 1111.1111 1111",
        "0.4111.1111.1111.1111",
        "5830.5020828128445 and 169947.78222669504",  # decimals whose digits satisfy Luhn
        "4 - 114013671875",
        "30.12.2023-05.01.2024",
    ],
)
def test_numbers_that_only_contain_a_card(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize("iban", IBANS)
@pytest.mark.parametrize("around", ["pay to {} when it is due", "iban:{}", "{}, please"])
def test_ibans_in_lower_case_and_with_hyphens(iban: str, around: str) -> None:
    for written in (iban.lower(), iban.replace(" ", "-"), iban.replace(" ", "").lower()):
        text = around.format(written)
        (match,) = personal_matches(text)
        assert (match.kind, text[match.start : match.end]) == ("iban", written)


@pytest.mark.parametrize("iban", IBANS)
@pytest.mark.parametrize("between", ["\u00a0", "\u202f", ".", "–", "  ", "\u200b"], ids=ascii)
def test_ibans_with_other_separators(iban: str, between: str) -> None:
    whole = iban.replace(" ", "")
    written = between.join(whole[place : place + 4] for place in range(0, len(whole), 4))
    for around in ("to {} now", "IBAN{} now", "_{}_", "Konto{}"):
        text = around.format(written)
        (match,) = personal_matches(text)
        assert (match.kind, text[match.start : match.end]) == ("iban", written)


def test_ibans_of_honduras_and_the_falklands() -> None:
    """The examples of the registry."""
    for example in ("HN88CABF00000000000250005469", "FK88SC123456789012"):
        assert kinds(f"Pay to {example}.") == ["iban"]


def test_a_phone_number_with_other_spaces() -> None:
    assert kinds("Call +49\u00a030\u00a0901820 or +49–30–901821") == ["phone", "phone"]


def test_an_iban_is_not_taken_for_the_card_in_it() -> None:
    account = "4111111111111111"
    iban = next(f"AT{check:02d}{account}" for check in range(2, 99) if iban_holds(f"AT{check:02d}{account}"))
    assert kinds(f"{iban[:4]} {iban[4:]}") == ["iban"]


@pytest.mark.parametrize("iban", IBANS)
def test_an_iban_is_proven_by_its_check_digits(iban: str) -> None:
    assert kinds(f"Pay to {iban} today.") == ["iban"]
    assert kinds(f"Pay to {iban} NOW PLEASE") == ["iban"]
    at = 6
    other = iban[:at] + str((int(iban[at]) + 1) % 10 if iban[at].isdigit() else 1) + iban[at + 1 :]
    assert kinds(f"Pay to {other} today.") == []


@given(st.text("0123456789", min_size=12, max_size=18))
def test_exactly_one_last_digit_satisfies_luhn(digits: str) -> None:
    assert sum(luhn_holds(digits + last) for last in "0123456789") == 1


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_exactly_one_pair_of_check_digits_from_02_on_satisfies_mod_97(account: int) -> None:
    assert sum(iban_holds(f"DE{check:02d}{account:018d}") for check in range(2, 99)) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+x@mail.acme.co.uk.", "email"),
        ("Call +49 30 901820 now", "phone"),
        ("Call (212) 867-5309 now", "phone"),
        ("from 93.184.216.34 at noon", "ip"),
        ("from 2606:2800:220:1:248:1893:25c8:1946 at noon", "ip"),
        ("key AKIAABCDEFGHIJKLMNOP", "key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "key"),
    ],
)
def test_patterns(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "write to name@example.com or user@domain.com",
        "decorate it with @property",
        "call 555-555-0123",
        "from 2024-01-12 to 2024-02-13, 12:30:45",
        "127.0.0.1, 192.168.0.1, 8.8.8.8 and version 2.0.0.1",
        "AKIAIOSFODNN7EXAMPLE is the documented key",
        "std::vector and a::b, 3.14159265358979, 1,000,000,000,000",
        "order 1234567890123456789012",
        "0000000000000000 and 1111111111111111",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert kinds(text) == []


def test_masking_shows_no_whole_secret() -> None:
    secrets = ["4111 1111 1111 1111", "GB82WEST12345698765432", "jane.doe@gmail.com", "(212) 867-5309"]
    shown = masked(" and ".join(secrets))
    assert not any(secret in shown for secret in secrets)
    assert shown == "[card …1111] and [IBAN GB…32] and [e-mail j…@g….com] and [phone …09]"


@settings(max_examples=40)
@given(st.text("ab1 4@.-+(", max_size=60))
def test_masking_leaves_other_text_as_it_is(text: str) -> None:
    if not personal_matches(text):
        assert masked(text) == text


@pytest.mark.parametrize(
    "unit",
    [
        *("1", "1 ", "a.", "A1", "+1-", "2:", "eyJ", "AB12 ", "DE12 ", "11111 ", "sk-", "@", "1.1", "a@a."),
        *("1\n", "1 - ", "1  ", "1111.", "aa1", "de12de12"),
    ],
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    personal_matches(text)
    assert time.process_time() - start < 5
