"""Answers that scorers get wrong, and what stands beside them; all of it invented here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

LONG = "the sign says stop and then it says stop again " * 8

ANSWERS = [
    "", " ", "\n", "\t \n", ".", "...", "?", "!?", "-", "--", "/", "'", '"', "()", "[]", "%", "$",
    ",", "yes", "Yes", "YES.", "yes!", "yes\n", "\nyes", "yes\nbecause it is", "no",
    "No, it is not", "not red", "isnt red", "isn't red", "the", "a", "an", "the a an", "a dog",
    "The Dog", "an apple.", "dog's", "the dog's bowl", "dogs'", "ten", "Ten dogs", "none", "None",
    "zero", "eleven", "two-three", "3", "3.", "3.0", "3.5", ".5", "0.5", "-3", "- 3", "+3", "1,000",
    "1,000.50", "1, 000", "1000", "12,34,567", "$1,000", "1,000 dollars", "5%", "5 %", "0.05",
    "12 kg", "12kg", "1/2", "½", "3:45", "3:45 pm", "3.45 p.m.", "10-12", "10 - 12", "2010/11/12",
    "1e3", "nan", "inf", "x=3", "x = 3", "$x^2+1$", "\\frac{1}{2}", "\\frac{a}{b} + c", "(a)",
    "(A) red", "A.", "B)", "[B]", "A, B", "answer is red", "The answer is: red", "red, blue",
    "red and blue", "red/blue", "red / blue", "red-blue", "red;blue", "red_blue", "red@blue.com",
    "www.red.com", "U.S.A.", "u.s.a", "café", "cafe", "naïve", "straße", "STRASSE", "東京",
    "３", "١٢", "İstanbul", "ﬁre", "a\u00a0dog", "dog\u200b", "👍", "don't know", "dont know",
    "somebody'd",
    "somebodyd've", "youre", "yall'll", "oclock", "ow's'at", "Im here", "let's go", "twas", "cant",
    "e.g. this", "a..b", "1.2.3", "v1.0", "No. 5", "#5", "@home", "<unk>", "<b>bold</b>", "C++",
    "`code`", "back\\slash", "{a: 1}", "=5", ">5", "<5", "10>5", "who?me", "who? me",
    "a. b. c. d. e", ". " * 40 + "end", LONG, LONG + "x", "1" * 50,
]  # fmt: skip

# How people write one text in several ways.
CHANGES: dict[str, Callable[[str], str]] = {
    "same": lambda text: text,
    "upper": str.upper,
    "lower": str.lower,
    "spaces": lambda text: f"  {text} ",
    "period": lambda text: f"{text}.",
    "article": lambda text: f"the {text}",
    "joined": lambda text: text.replace(" ", "-"),
    "apart": lambda text: text.replace("-", " - "),
    "bare": lambda text: "".join(c for c in text if c.isalnum() or c == " "),
    "no_commas": lambda text: text.replace(",", ""),
    "no_apostrophes": lambda text: text.replace("'", ""),
    "digits": lambda text: text.replace("ten", "10").replace("two", "2").replace("none", "0"),
    "possessive": lambda text: text.replace("'s", " 's"),
    "asked": lambda text: f"{text}?",
    "commas": lambda text: text.replace(" ", ", "),
    "lines": lambda text: text.replace(" ", "\n"),
}


def people_and_answers(num_rows: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(answer, what ten people said), some of whom said the same in other words."""
    lots = random.Random(seed)
    names = list(CHANGES)
    for number in range(num_rows):
        answer = ANSWERS[number % len(ANSWERS)]
        people = [
            CHANGES[lots.choice(names)](answer) for _ in range(lots.choice((0, 1, 2, 3, 4, 10)))
        ]
        people += [lots.choice(ANSWERS) for _ in range(10 - len(people))]
        if lots.random() < 0.2:  # all alike
            people = [people[0]] * 10
        lots.shuffle(people)
        yield answer, people
