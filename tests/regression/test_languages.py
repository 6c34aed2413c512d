"""Languages are told apart on whole sentences, not on the words of the set."""

from __future__ import annotations

import pytest

from prefine.regression.languages import language_of

TEXTS = {
    "en": [
        "The shop around the corner sells bread and milk, but it is closed on Sundays.",
        "I'm happy to help! What would you like to know?",
        "Lima is a city.",
    ],
    "de": [
        "Der Laden an der Ecke verkauft Brot und Milch, aber am Sonntag ist er geschlossen.",
        "Gerne! Hier sind drei Tipps:\n1. Trinken Sie genug Wasser.\n2. Gehen Sie früh schlafen.",
        "Die Hauptstadt von Peru ist Lima.",
        "Ich kann dir dabei helfen.",
    ],
    "fr": [
        "Le magasin au coin de la rue vend du pain et du lait, mais il est fermé le dimanche.",
        "Bien sûr ! Voici trois conseils pour vous.",
        "C'est une bonne idée.",
    ],
    "es": [
        "La tienda de la esquina vende pan y leche, pero los domingos está cerrada.",
        "¡Claro! Aquí tienes tres consejos para dormir mejor.",
        "El perro come carne.",
    ],
    "it": [
        "Il negozio all'angolo vende pane e latte, ma la domenica è chiuso.",
        "Certo! Ecco tre consigli per dormire meglio.",
        "Il cane mangia la carne e poi dorme.",
    ],
    "pt": [
        "A loja da esquina vende pão e leite, mas aos domingos está fechada.",
        "Claro! Aqui estão três dicas para você dormir melhor.",
        "O cachorro come carne todos os dias.",
    ],
    "nl": [
        "De winkel op de hoek verkoopt brood en melk, maar op zondag is hij gesloten.",
        "Natuurlijk! Hier zijn drie tips om beter te slapen.",
        "Het is een mooie dag.",
    ],
    "sv": ["Affären på hörnet säljer bröd och mjölk, men den är stängd på söndagar.", "Jag kan hjälpa dig med det."],
    "pl": ["Sklep na rogu sprzedaje chleb i mleko, ale w niedzielę jest zamknięty.", "To jest bardzo dobry pomysł."],
    "tr": ["Köşedeki dükkân ekmek ve süt satıyor, ama pazar günleri kapalı.", "Bu çok güzel bir fikir."],
    "ru": ["Магазин на углу продаёт хлеб и молоко, но в воскресенье он закрыт.", "Язык Python хорош для начинающих."],
    "zh": ["街角的商店卖面包和牛奶,但是星期天关门。", "Python是一种很受欢迎的编程语言。"],
    "ja": ["角の店はパンと牛乳を売っていますが、日曜日は休みです。", "東京は日本の首都です。"],
    "ko": ["모퉁이에 있는 가게는 빵과 우유를 팝니다."],
    "ar": ["يبيع المتجر في الزاوية الخبز والحليب، لكنه مغلق يوم الأحد."],
    "hi": ["कोने की दुकान रोटी और दूध बेचती है, लेकिन रविवार को बंद रहती है।"],
    "el": ["Το μαγαζί στη γωνία πουλάει ψωμί και γάλα, αλλά την Κυριακή είναι κλειστό."],
    "he": ["החנות בפינה מוכרת לחם וחלב, אבל ביום ראשון היא סגורה."],
    "th": ["ร้านตรงหัวมุมขายขนมปังและนม แต่ปิดวันอาทิตย์"],
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in TEXTS.items() for text in texts])
def test_language_of(code: str, text: str) -> None:
    assert language_of(text) == code
    assert language_of(text.upper()) == code


@pytest.mark.parametrize("text", ["", "42", "!!!", "Xylo brmpf quux", "Магазін продає їжу"])
def test_no_known_language(text: str) -> None:
    assert language_of(text) is None


def test_an_english_answer_with_some_foreign_words_is_english() -> None:
    assert language_of("The German word for bread is Brot, and for milk it is Milch.") == "en"
    assert language_of("In Chinese you say 你好 to greet people, and 谢谢 to thank them.") == "en"
