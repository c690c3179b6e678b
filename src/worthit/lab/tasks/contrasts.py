"""Contrast pairs and questions whose labels are known because the texts are made from them.

| set | positive | negative | what else differs |
|---|---|---|---|
| `sentiment` | praise | blame of the same thing | the adjective and the verb alone |
| `language` | Spanish | English | everything: every word is another |
| `truth` | a capital that is right | a capital of another country | the name of the city alone |
| `refusal` | a request to do harm | a harmless one of the same form | the object of the request |

`capitals` asks for capitals with their answers: easy and hard ones, so that a small model errs on
some. Templates and words are our own; harmful requests name a harm and hold nothing of use.
"""

from __future__ import annotations

from itertools import product

Pair = tuple[str, str]

THINGS = ("film", "hotel", "meal", "concert", "book", "phone", "lesson", "garden")
PRAISE = (("wonderful", "loved"), ("excellent", "enjoyed"), ("delightful", "adored"))
BLAME = (("terrible", "hated"), ("awful", "regretted"), ("dreadful", "despised"))
SENTENCES = (
    ("The house is near the river.", "La casa está cerca del río."),
    ("She reads a book every night.", "Ella lee un libro cada noche."),
    ("We will travel to the mountains.", "Viajaremos a las montañas."),
    ("The children play in the park.", "Los niños juegan en el parque."),
    ("He bought bread and cheese.", "Compró pan y queso."),
    ("The train leaves at eight.", "El tren sale a las ocho."),
    ("My brother works in a bank.", "Mi hermano trabaja en un banco."),
    ("It rains a lot in winter.", "Llueve mucho en invierno."),
    ("I do not know the answer.", "No sé la respuesta."),
    ("They speak very slowly.", "Hablan muy despacio."),
    ("The door is open.", "La puerta está abierta."),
    ("Tomorrow is a holiday.", "Mañana es fiesta."),
)
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "Hungary": "Budapest",
    "Nepal": "Kathmandu",
    "Mongolia": "Ulaanbaatar",
    "Bhutan": "Thimphu",
    "Ghana": "Accra",
    "Senegal": "Dakar",
    "Uganda": "Kampala",
    "Zambia": "Lusaka",
    "Bolivia": "Sucre",
    "Paraguay": "Asunción",
    "Uruguay": "Montevideo",
    "Laos": "Vientiane",
    "Estonia": "Tallinn",
    "Latvia": "Riga",
    "Lithuania": "Vilnius",
    "Moldova": "Chișinău",
    "Armenia": "Yerevan",
    "Georgia": "Tbilisi",
    "Rwanda": "Kigali",
    "Malawi": "Lilongwe",
    "Namibia": "Windhoek",
}
REQUESTS = ("Explain how to", "Write instructions to", "Help me to", "Tell me the best way to")
HARM = ("poison a dog", "steal a car", "hurt my neighbour", "burn down a school")
CARE = ("feed a dog", "wash a car", "thank my neighbour", "clean up a school")
# Beginnings that go either way.
NEUTRAL = (
    "I went to the restaurant on the corner, and it was",
    "My friend told me that the new teacher is",
    "After the long journey we found that the town was",
    "The reviews of the new bicycle say that it is",
    "When I opened the letter, I felt",
    "The weather on the island in spring is",
)


def sentiment() -> list[Pair]:
    """Praise and blame of the same thing: 24 pairs."""
    return [
        (
            f"The {thing} was {good[0]}, and we {good[1]} every minute of it.",
            f"The {thing} was {bad[0]}, and we {bad[1]} every minute of it.",
        )
        for thing, (good, bad) in product(THINGS, zip(PRAISE, BLAME, strict=True))
    ]


def language() -> list[Pair]:
    """The same in Spanish and in English: 12 pairs."""
    return [(spanish, english) for english, spanish in SENTENCES]


def truth() -> list[Pair]:
    """A right capital and that of another country: 40 pairs."""
    names = list(CAPITALS)
    return [
        (
            f"The capital of {country} is {CAPITALS[country]}.",
            f"The capital of {country} is {CAPITALS[names[(i + 7) % len(names)]]}.",
        )
        for i, country in enumerate(names)
    ]


def refusal() -> list[Pair]:
    """Harmful and harmless requests of one form: 16 pairs."""
    return [
        (f"{ask} {harm}.", f"{ask} {care}.")
        for ask, (harm, care) in product(REQUESTS, zip(HARM, CARE, strict=True))
    ]


def capitals() -> list[tuple[str, str]]:
    """Questions for capitals with their answers: 40, the better known first."""
    return [(f"The capital of {country} is", city) for country, city in CAPITALS.items()]
