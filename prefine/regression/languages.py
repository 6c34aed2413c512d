"""The language of a text, by its script and its function words."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import regex

from prefine.regression.form import CheckRule

# Function words, as they stand between the words of any text. A word of n languages counts 1/n for each.
_FUNCTION_WORDS = {
    "en": "the a i an of and to in is you that it he was for on are with as his they at be this have from or had by "
    "but not what all were we when your can said there an each which she do how their if will about many then "
    "them these so some her would make like him has more been its who now than my our because very also into "
    "only could",
    "de": "der die das und ist in zu den mit von für auf im dem nicht ein eine einen einem einer eines es sich auch "
    "als an wie aus bei nach wir sie ich er man aber oder wenn werden wird sind kann haben hat dass über so "
    "nur noch durch am zum zur war was sehr mehr sein ihr ihre diese dieser dieses hier weil um vor bis",
    "fr": "le la les de des du et est un une en que qui dans pour pas sur au aux avec ce il elle ne se sont par plus "
    "son sa ses nous vous je tu ils elles ou mais où donc car cette ces comme tout être avoir fait très peut à "
    "d l c qu n j s y leur leurs on si entre sans aussi même quand parce",
    "es": "el la los las de y que en un una es por con para del se no al lo como más su sus o pero este esta estos "
    "estas son ser está hay muy también cuando donde porque desde sobre entre hasta sin nos yo tú ella ellos "
    "usted mi me te le les si ya todo puede tiene hace ha era fue qué cómo",
    "it": "il lo la i gli le di e che è in un una uno per con del della dei delle nel nella al alla non si sono più "
    "ma anche o se questo questa questi queste da dal dalla sul sulla ci mi ti vi ha hanno essere molto perché "
    "quando dove io tu lui lei noi voi loro suo sua suoi sue ogni può l d dell nell all un c",
    "pt": "o a os as de e que em um uma é do da dos das no na nos nas por com para se não ao à mais como mas ou seu "
    "sua seus suas este esta isso isto são ser está há muito também quando onde porque desde sobre entre até "
    "sem eu tu ele ela eles nós você pode tem foi era pelo pela já me lhe",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er die om als ook maar bij uit door naar over "
    "dan nog wel geen je jij ik hij zij ze we wij u deze dit heeft hebben wordt worden kan kunnen was waren of "
    "want omdat tot zo meer veel zeer mijn jouw haar hun onze",
    "sv": "och att det som en ett på är av för med den till i har inte om de var jag han hon vi ni du kan ska men "
    "eller så från vid när där här också mycket många mer än under efter blir eftersom sig sin sitt sina dess "
    "detta denna dessa man mot utan mellan över",
    "pl": "i w na z do że się nie to jest o jak po za od ale dla przez tak co są być może jego jej ich tym tego ten "
    "ta te który która które lub oraz gdy kiedy gdzie bardzo także już tylko czy pod przy ponieważ bo ma mają "
    "był była było ze we jako",
    "tr": "ve bir bu da de için ile çok ne var daha gibi en kadar olan olarak ama veya ya sonra ben sen o biz siz "
    "onlar değil mi mı her şey çünkü ki ise olur bunu onun vardır yok şu hem nasıl zaman",
}
_LETTERS = {
    "de": "äöüß",
    "fr": "çèêëîïôûùœà",
    "es": "ñ¿¡áíóú",
    "it": "àèìòù",
    "pt": "ãõçâêáóú",
    "nl": "ĳ",
    "sv": "åäö",
    "pl": "ąćęłńśźż",
    "tr": "ğışçöü",
}
_SCRIPTS = {
    "zh": r"\p{Han}",
    "ja": r"[\p{Hiragana}\p{Katakana}\p{Han}ー]",
    "ko": r"\p{Hangul}",
    "ru": r"\p{Cyrillic}",
    "el": r"\p{Greek}",
    "ar": r"\p{Arabic}",
    "hi": r"\p{Devanagari}",
    "he": r"\p{Hebrew}",
    "th": r"\p{Thai}",
}
# Letters that other languages of the script have, and this one has not.
_FOREIGN_LETTERS = {"ru": "іїєґўјљњћђџ", "ar": "پچژگٹڈڑ", "zh": ""}
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_TOKEN = regex.compile(r"\p{Latin}+")
_LETTER = regex.compile(r"[\p{L}\p{M}]")
# Names and terms in Latin letters are part of text in other scripts.
_OWN_SCRIPT = 0.6
_ENOUGH = 0.1

_SHARES = Counter(word for words in _FUNCTION_WORDS.values() for word in set(words.split()))
_LETTER_SHARES = Counter(letter for letters in _LETTERS.values() for letter in letters)
_WEIGHTS = {
    language: {word: 1 / _SHARES[word] for word in words.split()} for language, words in _FUNCTION_WORDS.items()
}


class InLanguage(CheckRule):
    """The answer is in a language.

    Attributes:
        language: its ISO 639-1 code.
    """

    rule: Literal["language"] = "language"
    language: Literal[
        "en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "zh", "ja", "ko", "ru", "el", "ar", "hi", "he", "th"
    ]

    def holds(self, answer: str) -> bool:
        return language_of(answer) == self.language


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, among those above; None if it shows none.

    A text of Latin letters needs a function word or a letter that only one of these languages has.
    """
    letters = _LETTER.findall(text)
    if not letters:
        return None
    for language, script in _SCRIPTS.items():
        own = len(regex.findall(script, text))
        if own >= _OWN_SCRIPT * len(letters) and _has_no_foreign_letters(language, text):
            return language
    return _latin_language(text)


def _has_no_foreign_letters(language: str, text: str) -> bool:
    if language == "zh":
        return not _KANA.search(text)
    if language == "ja":
        return bool(_KANA.search(text))
    return not set(text.casefold()) & set(_FOREIGN_LETTERS.get(language, ""))


def _latin_language(text: str) -> str | None:
    tokens = [token.lower() for token in _TOKEN.findall(text)]
    if not tokens:
        return None
    scores = {
        language: sum(weights.get(token, 0.0) for token in tokens)
        + 0.5 * sum(text.lower().count(letter) / _LETTER_SHARES[letter] for letter in _LETTERS.get(language, ""))
        for language, weights in _WEIGHTS.items()
    }
    best = max(scores, key=lambda language: scores[language])
    others = max(score for language, score in scores.items() if language != best)
    return best if scores[best] >= _ENOUGH * len(tokens) and scores[best] > others else None
