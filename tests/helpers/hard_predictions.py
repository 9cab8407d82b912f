"""Answers to yes-no questions, multiple choices and requests for boxes or captions that are hard to
read; all of it invented here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

LONG = "a long answer that goes on and on and says nothing " * 20

_YES_OR_NO = [
    "", " ", "\n", ".", "...", "?", "!", "-", "yes", "no", "Yes", "No", "YES", "NO", "nO", "yEs",
    "yes.",
    "no.", "Yes!", "No!", "yes,", "no,", "No;", "No:", "(no)", "[yes]", '"no"', "'yes'", "*No*",
    "**Yes**", "\nno", "no\n", "no\nbecause it is empty", "yes\nno", "\tno", "no\tyes",
    "Yes, it is.",
    "No, it is not.", "Yes. There is no doubt.", "Yes, there is no doubt.", "yes and no",
    "no and yes",
    "Yes or no", "No. Yes.", "Yes. No.", ". No", "... No, there is not.", "There is a dog.",
    "There is no dog.", "There is not a dog.", "There isn't a dog.", "There isn’t a dog.",
    "There aren't any.", "It doesn't show one.", "I cannot tell", "I can't tell", "I do not know.",
    "I don't know.", "Not sure", "not", "Not", "NOT", "none", "None", "never", "nope", "nah",
    "yeah",
    "yep", "yesno", "noyes", "know", "I know", "nothing", "another one", "notable", "A note",
    "knot", "snow", "The answer is yes.", "The answer is no.", "The answer is: No", "Answer: yes",
    "answer:no", "No there is", "Yes there is", "no-one", "no one is there", "no_one", "no/yes",
    "yes/no",
    "y", "n", "Y", "N", "true", "false", "True.", "False.", "1", "0", "1 no", "ja", "nein", "oui",
    "non",
    "sí", "да", "нет", "是", "不是", "はい", "いいえ", "ｎｏ", "Ｎｏ", "ｙｅｓ", "no\u00a0dog",
    "no\u200b",
    "ＮＯ no", "👍", "👎", "👎 no", "yes" * 30, "no " * 50, LONG, LONG + "no", "no. " + LONG,
    LONG + ". no",
    "There is a dog, but no cat", "There is, no, there is not", "Certainly!", "Of course not.",
    "Certainly not", "I think so", "I think not", "Hardly", "Without doubt", "e.g. no", "v1.0 no",
    "3.5 no", "1.No", "1. No", "a) no", "A. yes", "<no>", "<b>No</b>", "{yes}", "`no`", "no?",
    "yes?",
    "no…", "No — it is a cat", "Yes—it is", "no–", "yes;no", "Is there no dog?", "N o", "Y e s",
    "no 100%", "yes 100%", "NO WAY", "no way", "No Way", "there are NOT", "There are Not",
    "It's not",
    "It is, not", "is not.", "it's a no", "that is a no.", "it's a No-go", "does not", "did n't",
    "won't", "wouldn't be", "n't", "isn t", "isnt", "cant", "cannot", "can not", "\\n no",
    "No \\ yes", "yes\r\nno", "no\r\n", "\r", "\x00no", "no\x00", "ño", "nö", "nó", "yés",
]  # fmt: skip


def yes_no_answers() -> list[str]:
    return list(dict.fromkeys(_YES_OR_NO))


OPTION_SETS = [
    ["red", "dark red", "blue", "light blue"],
    ["cat", "dog"],
    ["1", "10", "100", "12"],
    ["A man is running", "A woman is running", "Nobody is running"],
    ["Yes", "No"],
    ["the left one", "the right one", "both", "none of them"],
    ["B", "A", "D", "C"],
    ["x^2 + 1", "(x)", "a.b", "[x]"],
    ["Café", "東京", "naïve", "straße"],
    ["Vitamin C", "Vitamin A", "Iron", "Zinc"],
    ["same", "same", "other", "another"],
]

_CHOICES = [
    "{L}", "{l}", "{L}.", "{L})", "({L})", "({l})", "[{L}]", "{L}:", "{L},", "**{L}**", "{L}\n",
    "\n{L}",
    " {L} ", "{L}\n\nBecause of that", "{L}. {T}", "{L}) {T}", "({L}) {T}", "{L}: {T}", "{L} {T}",
    "{L}, {T}",
    "{L}.{T}", "{l}. {T}", "{l}) {T}", "{L}\n{T}", "{T}", "{T}.", "{t}", "{U}", " {T} ",
    "the {T}", "a {T}",
    "A {T}", "It is {T}", "It is {T}.", "The answer is {L}", "The answer is {L}.",
    "The answer is ({L}).",
    "The answer is **{L}**.", "answer is {l}", "Answer: {L}", "ANSWER: {L}", "answer {L}",
    "Option {L}",
    "option {L} is right", "The correct answer is {L}. {T}", "The correct option is {L}: {T}",
    "I would choose {L}", "I think it is {L}, because that is so", "It could be {L}, but not {O}",
    "{L} or {O}", "{L} and {O}", "{L}, {O}", "{L}{O}", "{L}/{O}", "not {L}", "Not {O} but {L}",
    "{L} is right", "{L} because it is seen", "Between {O} and {L} I choose {L}",
    "The answer is {L}, not {O}", "The answer is {L} or the answer is {O}", "{T} or {P}",
    "{T}, not {P}",
    "It is {T}, as {T} is seen", "{T}{P}", "pre{T}", "{T}s", "'{T}'", '"{T}"', "{L}'s", "I'{L}",
    "{L}-{T}", "{L}_{T}", "<{L}>", "#{L}", "${L}$", "\\boxed{{{L}}}", "{L}" * 3, "{L} " * 3,
    "{L}?", "{L}!",
    "{L};", "Choice {L}", "letter {L}", "{L}: this is a long explanation of why {T} is what we see",
    "We see something. Therefore {L}", "We see something. Therefore {T}", "Ans. {L}", "Ａ", "Ｂ.",
    "А",
]  # fmt: skip

_CHOICES_ALONE = [
    "", " ", "\n", ".", "?", "-", "E", "Z", "e.", "(Z)", "Z. red", "A", "a", "I", "I see a cat",
    "A cat and a dog",
    "None", "none", "None of the above", "All of them", "ABCD", "A B C D", "A, B", "abc", "U.S.A.",
    "Vitamin", "C vitamin", "Sorry, I can't help with images of people yet.",
    "Cannot determine the answer",
    "Failed to obtain answer via API", "1", "1.", "10", "2", "a b c", "B B B", "A A", "東京",
    "👍", LONG,
    LONG + "B", "B " + LONG, LONG + "cat", "cat " + LONG, "I", "It's A", "It's a", "A's", "a.b",
    "(x)",
]  # fmt: skip


def option_answers(seed: int = 0) -> Iterator[tuple[str, list[str], str]]:
    """(answer, texts of the options, letter of the right one)."""
    lots = random.Random(seed)
    for number, form in enumerate([form for form in _CHOICES for _ in range(4)]):
        options = OPTION_SETS[number % len(OPTION_SETS)]
        right, other = lots.sample(range(len(options)), 2)
        letter, text = "ABCDEF"[right], options[right]
        answer = form.format(
            L=letter, l=letter.lower(), O="ABCDEF"[other], T=text, t=text.lower(), U=text.upper(),
            P=options[other],
        )  # fmt: skip
        yield answer, options, letter
    for number, answer in enumerate(_CHOICES_ALONE * 2):
        options = OPTION_SETS[number % len(OPTION_SETS)]
        yield answer, options, "ABCDEF"[number % len(options)]


_BOXES = [
    "[[{0}, {1}, {2}, {3}]]", "[{0}, {1}, {2}, {3}]", "[{0},{1},{2},{3}]", "[[{0},{1},{2},{3}]]",
    "({0}, {1}, {2}, {3})", "<box>({0}, {1}), ({2}, {3})</box>", "<box>({0},{1}),({2},{3})</box>",
    "<ref>a dog</ref><box>[[{0}, {1}, {2}, {3}]]</box>", "({0},{1}),({2},{3})",
    "({0},{1})({2},{3})",
    "<box>{0}, {1}, {2}, {3}</box>", "{0}, {1}, {2}, {3}", "{0} {1} {2} {3}", "[{0} {1} {2} {3}]",
    "The box is [{0}, {1}, {2}, {3}].", "[ {0} , {1} , {2} , {3} ]", "[{0}.0, {1}.0, {2}.0, {3}.0]",
    "[0.{0}, 0.{1}, 0.{2}, 0.{3}]", "[[.{0}, .{1}, .{2}, .{3}]]", "[{2}, {3}, {0}, {1}]",
    "[{2}, {1}, {0}, {3}]",
    "[{0}, {3}, {2}, {1}]", "[{0}, {1}, {2}, 1{3}]", "[-{0}, {1}, {2}, {3}]",
    "[-{0}, -{1}, -{2}, -{3}]",
    "[{0}, {1}, {2}]", "[{0}, {1}, {2}, {3}, 5]", "[[{0}, {1}], [{2}, {3}]]", "[{0}, {1}, {2}, x]",
    "[a, b, c, d]", "[{0}, {1}, {2}, {3}] [1, 2, 3, 4]", "[1, 2, 3, 4] [{0}, {1}, {2}, {3}]",
    "[[{0}, {1}, {2}, {3}], [1, 2, 3, 4]]", "first [dog] then [{0}, {1}, {2}, {3}]",
    '{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "dog"}}', "x1={0}, y1={1}, x2={2}, y2={3}",
    "from {0}, {1} to {2}, {3}", "[{0};{1};{2};{3}]", "[{0}, {1},\n{2}, {3}]",
    "\n[[{0}, {1}, {2}, {3}]]\n",
    "[{0}%, {1}%, {2}%, {3}%]", "[[{0}, {1}, {2}, {3}", "{0}, {1}, {2}, {3}]]",
    "[+{0}, {1}, {2}, {3}]",
    "[{0}, {1}, {0}, {1}]", "[{0}, {1}, {2}, {1}]", "[[ {0}, {1}, {2}, {3} ]].",
    "[{0}., {1}., {2}., {3}.]",
]  # fmt: skip

_BOXES_ALONE = [
    "", " ", "\n", "[]", "[[]]", "()", "no box", "[,,,]", "[0, 0, 0, 0]", "[0, 0, 1, 1]",
    "[[0, 0, 1000, 1000]]",
    "[0, 0, 1, 2]", "[1, 1, 1, 1]", "[1, 1, 2, 2]", "[0.0, 0.0, 1.0, 1.0]", "[1e2, 1e2, 5e2, 5e2]",
    "[nan, nan, nan, nan]", "[inf, 0, 1, 1]", "there are 2 dogs, 3 cats, 4 cows and 5 pigs",
    "2, 3, 4",
    "[９, ９, ９９, ９９]", "[0, 0, 99999999999, 99999999999]", "[" * 50,
    "[0, 0, 500, 500" + "0" * 40 + "]",
    LONG, LONG + "[[100, 100, 500, 500]]", "[[100, 100, 500, 500]] " + LONG,
    "[1000, 1000, 1000, 1000]",
]  # fmt: skip


def box_answers(seed: int = 0) -> Iterator[tuple[str, list[float], int, int]]:
    """(answer, corners of the right box in pixels, width and height of the image)."""
    lots = random.Random(seed)
    forms = [form for form in _BOXES for _ in range(5)]
    for number, form in enumerate([*forms, *_BOXES_ALONE]):
        width, height = lots.choice([(640, 480), (480, 640), (500, 375), (1000, 1000), (333, 999)])
        x1, y1 = lots.randrange(100, 500), lots.randrange(100, 500)
        x2, y2 = x1 + lots.randrange(100, 490), y1 + lots.randrange(100, 490)
        move = (0, 5, 20, 60, 150)[number % 5]  # from right to wrong
        given = [min(n + lots.choice((0, move)), 999) for n in (x1, y1, x2, y2)]
        truth = [x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000]
        # In 32 bits, as the published parquet files have them.
        yield form.format(*given) if form in _BOXES else form, truth, width, height


_THINGS = [
    "a dog",
    "two cats",
    "an old man",
    "the red bus",
    "three children",
    "a sign that says stop",
]
_DOINGS = ["runs", "is sitting", "stands still", "looks at a tree", "waits", "is shown"]
_PLACES = [
    "on the grass",
    "in the street",
    "near a house",
    "on a table",
    "under the sky",
    "at night",
]
_FORMS = [
    "{}", "{}.", "{}!", " {} ", "{}\n", "\n{}", "A photo of {}", "In the picture, {}.",
    "{}, and more",
    "({})", '"{}"', "{} -- or so", "{}...", "**{}**", "{} 100%", "{} (3 of them)", "{}; it's late",
    "{}\nand more of it", "{}\rand more of it", "{}\u2028more", "{}\x85more", "{}\x0bmore",
    "{} 東京", "{} café",
    "{} 👍", "{} \u00a0 here", "{}'s", "don't {}", "{} can't", "2 1/2 {}", "$5 {}", "{} @home #1",
    "{} e.g. so",
    "", " ", ".", "...", "?!", "()", "the the the the", "a", "1 2 3", LONG, "{} " * 12,
]  # fmt: skip


def captions_and_references(num_rows: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(caption, captions that people gave)."""
    lots = random.Random(seed)

    def sentence() -> str:
        return f"{lots.choice(_THINGS)} {lots.choice(_DOINGS)} {lots.choice(_PLACES)}"

    for number in range(num_rows):
        truth = sentence()
        people = [truth.capitalize() + ".", *(sentence() for _ in range(lots.choice((1, 2, 4))))]
        form = _FORMS[number % len(_FORMS)]
        said = truth if lots.random() < 0.6 else sentence()
        yield form.replace("{}", said), people


def rotated_questions(num_groups: int, seed: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Rows of a question or two in every rotation of their options, with a model's answers."""
    lots = random.Random(seed)
    for _ in range(num_groups):
        rows = []
        for question in range(1, lots.choice((2, 3))):
            options = [f"{word} thing" for word in ("red", "blue", "green", "brown")]
            options = options[: lots.choice((2, 3, 4))]
            right = lots.choice(options)
            skill = lots.choice((0, 0.5, 0.9, 1))
            for turn in range(len(options)):
                order = options[turn:] + options[:turn]
                truth = "ABCD"[order.index(right)]
                wrong = lots.choice([letter for letter in "ABCD"[: len(order)] if letter != truth])
                said = truth if lots.random() < skill else wrong
                rows.append(
                    {
                        "index": question + 1_000_000 * turn,
                        "question": "What is it?",
                        "answer": truth,
                        "prediction": lots.choice(("{}", "{}.", "({})", "{}")).format(said),
                        "category": "made up",
                        **dict(zip("ABCD", [*order, None, None])),
                    }
                )
        yield rows
