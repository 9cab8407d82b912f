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
    "zero", "eleven", "two-three", "3", "3.", "3.0", "3.5", ".5", "0.5", "-3", "- 3", "+3",
    "1,000", "1,000.50", "1, 000", "1000", "12,34,567", "$1,000", "1,000 dollars", "5%", "5 %",
    "0.05", "12 kg", "12kg", "1/2", "½", "3:45", "3:45 pm", "3.45 p.m.", "10-12", "10 - 12",
    "2010/11/12", "1e3", "nan", "inf", "x=3", "x = 3", "$x^2+1$", "\\frac{1}{2}",
    "\\frac{a}{b} + c", "(a)", "(A) red", "A.", "B)", "[B]", "A, B", "answer is red",
    "The answer is: red", "red, blue", "red and blue", "red/blue", "red / blue", "red-blue",
    "red;blue", "red_blue", "red@blue.com", "www.red.com", "U.S.A.", "u.s.a", "café", "cafe",
    "naïve", "straße", "STRASSE", "東京", "３", "١٢", "İstanbul", "ﬁre", "a\u00a0dog", "dog\u200b",
    "👍", "don't know", "dont know", "somebody'd", "somebodyd've", "youre", "yall'll", "oclock",
    "ow's'at", "Im here", "let's go", "twas", "cant", "e.g. this", "a..b", "1.2.3", "v1.0",
    "No. 5", "#5", "@home", "<unk>", "<b>bold</b>", "C++", "`code`", "back\\slash", "{a: 1}", "=5",
    ">5", "<5", "10>5", "who?me", "who? me", "a. b. c. d. e", ". " * 40 + "end", LONG, LONG + "x",
    "1" * 50,
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


OPTIONS = [
    ["red", "dark red", "blue", "green"], ["A", "C", "B", "D"],
    ["vitamin A", "vitamin B", "vitamin C"], ["1,000", "100", "10", "-10"], ["yes", "no"],
    ["<image 1>", "<image 2>", "both A and B", "none of these", "I cannot tell"],
]  # fmt: skip

LETTER_ANSWERS = [
    "", " ", ".", "?", "()", "A", "B", "b", "c.", "(B)", "(b)", "B)", "[B]", "B.", "B:", "B,",
    "B!", "B.'", " B ", "B\n", "\nB", "B\nbecause it is", "B because A is wrong",
    "B. because A is wrong", "(B) because (A) is wrong", "A and B", "A, B", "A B C D",
    "(A) or (B)", "AB", "BANANA", "E", "Z", "F", "The answer is B", "The answer is B.",
    "The answer is (B).", "the answer is b", "Answer: B", "Answer:B", "**B**", "$B$", "\\boxed{B}",
    "\\boxed{C}.", "Option B", "option B is right, not C", "not B", "It is not A, so it is B",
    "A dog", "A dog is in the picture on the left", "I think so",
    "I would say that it is A because of the light", "red", "Red", "RED.", "dark red", "Dark red.",
    "it is dark red", "the colour is blue", "blue and green", "B. dark red", "B. red",
    "A. dark red", "(C) blue", "C: blue", "C) blue, as the sky", "yes", "Yes", "Yes.", "no",
    "No, it is not", "know", "yes and no", "vitamin C", "vitamin",
    "Vitamin A is in it, B and C are not", "1,000", "1000", "10", "100", "-10", "<image 2>",
    "The image that fits best is <image 2> I think", "none of these",
    "Neither of them, so none of these it is", "both A and B", "both", "I cannot tell",
    "Cannot tell", "Sorry, I can't help with images of people yet.", "B" * 300,
    "the answer " * 60 + "is C", "first A then B then C and at last it is D as everybody knows",
    "Ｂ", "В", "⒝", "Bé", "B\u200b",
]  # fmt: skip

CHART_TRUTHS = [
    "14", "-14", "0", "0.5", "5%", "1000", "Yes", "No", "2019", "[1, 2]", "United States", "1e3",
]  # fmt: skip

CHART_ANSWERS = [
    "", " ", ".", "%", "14", "14.0", "14.", " 14 ", "+14", "-14", "- 14", "13.3", "13.29", "14.7",
    "14.71", "-13.3", "-14.7", "-14.71", "fourteen", "14%", "0.14", "14 %", "14%%", "$14",
    "14 dollars", "about 14", "0", "0.0", "-0", "0%", "zero", "0.001", "0.5", ".5", "50%", "0.475",
    "0.525", "0.53", "1/2", "½", "5%", "5", "0.05", "5.2%", "5.3%", "1000", "1,000", "1 000",
    "1_000", "1e3", "1E3", "950", "949", "1050", "1051", "nan", "inf", "-inf", "Yes", "yes", "YES",
    "Yes.", "yes\n", "no", "No, it is not", "not yes", "2019", "2018", "2119", "2120", "'2019'",
    "[1, 2]", "[1,2]", "1, 2", "United States", "united states", "the United States",
    "United States.", "US", "１４", "١٤", "14\n15", "the answer is 14", "14 and 15",
    "\\frac{28}{2}", "$14$", "1" * 40, "1" * 400, "9" * 500 + "%",
]  # fmt: skip

DOCUMENT_TRUTHS = [
    ["Dear Sir"], ["1,000", "1000"], ["12/03/1998"], ["a"], ["Straße 5"], ["the  big   house"],
    ["ITC Limited", "itc ltd."], ["0.28"], ["https://example.org/a?b=c"], ["東京タワー"],
]  # fmt: skip

DOCUMENT_ANSWERS = [
    "", " ", ".", "a", "A", "b", "ab", "abc", "dear sir", "Dear Sir", "DEAR SIR.", "Dear",
    "Dear S", "Sir", "Dear Madam", "  dear   sir  ", "dear\nsir", "dear sir" + " " * 30,
    "xyz" + " " * 200, "Dear Sir, I am", "1,000", "1000", "1.000", "10000", "1 000", "12/03/1998",
    "12-03-1998", "12/03/98", "March 12, 1998", "Straße 5", "STRASSE 5", "strasse 5", "strase",
    "the big house", "The Big  House", "big house", "the big big house", "house the big",
    "ITC Limited", "itc ltd", "ITC", "0.28", "0.29", ".28", "28%", "https://example.org/a?b=c",
    "example.org", "HTTPS://EXAMPLE.ORG", "東京タワー", "東京", "東京 タワー",
    "The answer is Dear Sir", "İ", "ﬁ", "x" * 400,
]  # fmt: skip

OCR_TRUTHS = [
    ["CENTRE"], ["5"], ["yes", "no"], ["New\nYork"], ["$12.50", "12.50"], ["", "x"], ["Straße"],
    ["ＡＢＣ"], ["\\frac { a } { b } + c"], ["x ^ { 2 }"],
]  # fmt: skip

OCR_ANSWERS = [
    "", " ", ".", "centre", "CENTRE", "Centre.", "the word is CENTRE", "center", "C E N T R E",
    "CENT RE", "5", "15", "five", "5.0", "yes", "no", "yes and no", "know", "not yes", "YES",
    "new york", "New York", "New\nYork", "NewYork", "new  york", "$12.50", "12.50", "12.5",
    "12,50", "x", "X", "text", "straße", "STRASSE", "ABC", "ＡＢＣ", "ａｂｃ", "\\frac{a}{b}+c",
    "\\frac { a } { b } + c", "\\frac{A}{B}+C", "$\\frac{a}{b}+c$", "x^{2}", "x ^ { 2 }", "X^{2}",
    "x^2", "x\n^{2}", "İ", "5" * 300, "no " * 100,
]  # fmt: skip

OPEN_TRUTHS = [
    ["1.06"], ["C"], ["Transformation"], ["1/64"], ["trans-1-Chloro"], ["60"], ["$MgS$", "MgS"],
    ["Tampa", "Florida"], ["2000000"], ["-120"], ["24/7", "3.429"], ["0.10"],
]  # fmt: skip

OPEN_ANSWERS = [
    "", " ", ".", ":", "1.06", "1.060", "1.064", "1.066", "1,06", "about 1.06 m", "x = 1.06",
    "= 1.06", "c", "C", "C.", "(C)", "it is C", "The answer is C.", "cat", "a c b",
    "transformation", "Transformations", "no transformation", "the answer is: transformation",
    "1/64", "0.015625", "so 1/64", "trans-1-chloro", "Trans-1-Chloro-4-methylcyclohexane", "60",
    "60.0", "60 %", "60%", "sixty", "-60", "160", "$60", "therefore 60",
    "60 is wrong, so the result is 61", "61\nso it is 60", "it is 60\nit is 61", "MgS", "$MgS$",
    "mgs", "Florida", "Tampa, Florida", "it could be Tampa", "tampa bay", "2000000", "2,000,000",
    "2 million", "2e6", "2E+6", "$2,000,000.", "-120", "- 120", "120", "x=-120", "24/7", "3.429",
    "3.43", "3.4", "24 / 7", "0.1", ".1", "0.10", "0.101", "10%", "nan", "inf", "1e999",
    "final answer", "is", "so is", "answer ", "result = ", "the final result is\n60",
    "The result is 60. Therefore 60.", "é", "＝60", "\\frac{24}{7}", "\\boxed{60}",
    "60" + "0" * 300, "so " * 200 + "60", "1,2,3", "1,000,00", "it's 1.06e0",
]  # fmt: skip

MATH_QUESTIONS = [
    {"answer":"14", "answer_type":"integer", "precision":None, "choices":None}, {"answer":"-3",
    "answer_type":"integer", "precision":None, "choices":None}, {"answer":"1000",
    "answer_type":"integer", "precision":None, "choices":None}, {"answer":"0.6",
    "answer_type":"float", "precision":1, "choices":None}, {"answer":"1.45", "answer_type":"float",
    "precision":2, "choices":None}, {"answer":"[2007, 2008]", "answer_type":"list",
    "precision":None, "choices":None}, {"answer":"8/11", "answer_type":"text", "precision":None,
    "choices":["3/11", "8/11", "6/11", "3/5"]}, {"answer":"Yes", "answer_type":"text",
    "precision":None, "choices":["Yes", "No"]},
]  # fmt: skip

MATH_ANSWERS = [
    "", " ", ".", "?", "14", "14.0", " 14 ", "+14", "14.", "14.4", "14.9", "-14", "14 cm", "$14$",
    "14%", "\\boxed{14}", "The number missing is 14.", "The answer is 14.",
    "the answer is 14, not 13", "Answer: 14", "x = 14", "2 + 12 = 14", "14 = 2 + 12", "fourteen",
    "1 4", "13 or 14", "-3", "- 3", "−3", "x=-3", "10-3", "3", "1000", "1,000", "1,000.0",
    "1000.5", "$1,000", "1e3", "10^3", "0.6", ".6", "0.60", "0.64", "0.65", "0.55", "0.56", "3/5",
    "\\frac{3}{5}", "60%", "0.6, which means six of ten", "six of ten", "1.45", "1.450", "1.454",
    "1.455", "1.5", "$1.45", "Luca needs $1.45 to buy it.", "[2007, 2008]", "[2007,2008]",
    "[2007.0, 2008.0]", "(2007, 2008)", "2007 and 2008", "between 2007 and 2008.", "2007-2008",
    "[2008, 2007]", "[2007]", "[]", "[2007, 2008", "2006, 2007, 2008", "B", "(B)", "(b)", "b",
    "B.", "(B) 8/11", "B) 8/11", "8/11", "The correct answer is (B) 8/11.", "8 / 11", "8/1",
    "8/11 of it is blue", "A", "(A)", "(E)", "E", "Yes", "yes", "No", "Yes.", "Yes, it is",
    "no idea", "nan", "inf", "1e999", "9" * 300, "because " * 60 + "the answer is 14", "14\n15",
    "15\n14", "１４", "½", "it is 14 because 2 + 12 = 14 and not 15",
]  # fmt: skip
