"""InfiniteBench's rules (arXiv 2402.13718), oddities included: those since August 2024, and `_june` those until then.

What a row lists, its options or else all its answers, comes as the `all_classes` of LongBench's metrics.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

LETTERS = "ABCD"
WORD_ENDS = "\n:\"'.,?!{}"
OPTION_ENDS = "\n\"'.,?!{}"
OPTION_SAID = ("answer is:", "answer:", "answer is", "option is")
FUNCTION_SAID = ("answer is:", "is:", "answer:", "correct option is:")
# InfLLM looks for one of the first, then behind that for one of the second.
FUNCTION_SAID_INFLLM = (("answer is:", "is:", "answer:"), ("answer is", "error is"))
# A dot stops at the end of a line: the last letter of the first line that has one.
LAST_OPTION = re.compile(r"\b[A-D]\b(?!.*\b[A-D]\b)")
LAST_FUNCTION = re.compile(r"\b[A-J]\b(?!.*\b[A-J]\b)")


def first_integer(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Retrieve.PassKey and .Number: the first run of digits is the answer, digit for digit."""
    return float(next(iter(re.findall(r"[0-9]+", prediction)), None) == truth)


def has_word(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Retrieve.KV: the answer is one of the words."""
    return float(truth in blanked(prediction, WORD_ENDS).split())


def last_integer(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Code.Run: the last word is the integer; `4.0` ends in the word `0`."""
    words = blanked(prediction, "\n.`'\":").split()
    try:
        return float(int(words[-1]) == int(truth))
    except (ValueError, IndexError):
        return 0.0


def first_number(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Math.Find: the first number, its sign ignored, is the answer, whose fraction is dropped where it is an integer.

    There the official rule ends the whole run at a prediction such as `48.0`; this is SCBench's repair of it.
    """
    found = re.search(r"\d+\.\d+|\d+", prediction)
    if found is None:
        return 0.0
    said = float(found[0])
    return float(said == float(truth) if "." in truth else int(said) == int(truth))


def leading_numbers(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """Math.Calc: the share of the answer's numbers before the first wrong one; signs are ignored."""
    said, wanted = re.findall(r"\d+", prediction), re.findall(r"\d+", truth)
    right = 0
    for ours, theirs in zip(said, wanted, strict=False):
        if int(ours) != int(theirs):
            break
        right += 1
    return right / len(wanted)


def speaker(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """En.Dia: the name is part of the prediction, whatever the case; `a palace` names ACE."""
    return float(truth.upper() in prediction.upper())


def speaker_june(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """En.Dia until August 2024: the first name only, which must be one word in capitals and one of the prediction's."""
    first = truth if all_classes is None else all_classes[0]
    return float(truth == first and truth in blanked(prediction, WORD_ENDS).upper().split())


def speaker_infllm(prediction: str, truth: str, all_classes: Sequence[str] | None = None) -> float:
    """En.Dia in InfLLM: `speaker_june` for any of the names."""
    return speaker_june(prediction, truth)


def option(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """En.MC: a lone A to D, the last of its line, is the right letter; else as `option_june`."""
    found = LAST_OPTION.search(prediction)
    if found is not None and found[0] in (truth, letter(truth, all_classes)):
        return 1.0
    return option_june(prediction, truth, all_classes)


def option_june(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """En.MC until August 2024: the first character, the whole, what follows "answer is" or the first such word."""
    text, right = prediction.strip(), (truth, letter(truth, all_classes))
    if _begins(text):
        return float(text[:1] in right)
    return float(text in right or _chosen(text, right, right))


def option_infllm(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """En.MC in InfLLM (12b7079): unstripped, and the better of the answer's text and its letter, each judged alone.

    Behind "answer is" any character of the text will do: it is taken for a list of answers.
    """
    either = (truth, letter(truth, all_classes))
    if _begins(prediction):
        return float(prediction[:1] in either)
    return float(any(_chosen(prediction, (right,), tuple(right)) for right in either))


def buggy_function(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """Code.Debug: a lone A to J, the last of its line, is the right letter, or the text begins with the answer;
    else as `buggy_function_june`."""
    right = (letter(truth, all_classes), truth)
    found = LAST_FUNCTION.search(prediction.strip())
    if found is not None and found[0] == right[0]:
        return 1.0
    text = _plain(prediction)
    return float(text.startswith(right) or bool(_after(text, FUNCTION_SAID, right)))


def buggy_function_june(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """Code.Debug until August 2024: begins with `B.` or `B:`, or says `answer is: B`; a bare `B` is nothing."""
    right = (letter(truth, all_classes), truth)
    if prediction.strip()[:2] in (f"{right[0]}.", f"{right[0]}:"):
        return 1.0
    return float(bool(_after(_plain(prediction), FUNCTION_SAID, right)))


def buggy_function_infllm(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """Code.Debug in InfLLM (12b7079): as in June, but unstripped at first and with other sayings.

    Where nothing of the kind is said, a letter that is drawn by the function's name counts as the answer.
    """
    right = (letter(truth, all_classes), truth)
    if prediction[:2] in (f"{right[0]}.", f"{right[0]}:"):
        return 1.0
    text, found = _plain(prediction), list[bool]()
    for sayings in FUNCTION_SAID_INFLLM:
        rest = _behind(text, sayings)
        if rest is not None:
            text = rest
            found.append(rest.startswith(right))
    return float(any(found) if found else random.Random(truth).choice(LETTERS) == right[0])


RULES: Mapping[str, Callable[[str, str, Sequence[str] | None], float]] = {
    "first_integer": first_integer,
    "has_word": has_word,
    "last_integer": last_integer,
    "first_number": first_number,
    "leading_numbers": leading_numbers,
    "speaker": speaker,
    "speaker_june": speaker_june,
    "speaker_infllm": speaker_infllm,
    "option": option,
    "option_june": option_june,
    "option_infllm": option_infllm,
    "buggy_function": buggy_function,
    "buggy_function_june": buggy_function_june,
    "buggy_function_infllm": buggy_function_infllm,
}


def letter(truth: str, options: Sequence[str] | None) -> str:
    """The letter of an option. Raises ValueError for what is none of four."""
    if options is None or truth not in options[: len(LETTERS)]:
        raise ValueError(f"the answer {truth[:80]!r} is none of the row's four options")
    return LETTERS[options.index(truth)]


def blanked(text: str, characters: Iterable[str]) -> str:
    """The text with a blank for each of these."""
    for character in characters:
        text = text.replace(character, " ")
    return text


def _begins(text: str) -> bool:
    """Whether the first character decides: it is an option's letter, or there is none."""
    return not text or text[0] in LETTERS


def _chosen(text: str, right: tuple[str, ...], behind: tuple[str, ...]) -> bool:
    """What a text chooses by more than its beginning. behind: what is right behind "answer is"."""
    text = re.sub(" +", " ", blanked(text, OPTION_ENDS))
    said = _after(text, OPTION_SAID, behind)
    if said is not None:
        return said
    # A stretch of the alphabet such as AB counts as a word that chooses.
    return next((word for word in text.split() if word in LETTERS), None) in right


def _plain(prediction: str) -> str:
    marks = ("\n", "`", "'", '"', "-", "*", "Option", "option")
    return re.sub(" +", " ", blanked(prediction.strip(), marks))


def _after(text: str, sayings: Sequence[str], right: tuple[str, ...]) -> bool | None:
    """Whether a right answer stands behind the first saying that is there; None: none is."""
    rest = _behind(text, sayings)
    return None if rest is None else rest.startswith(right)


def _behind(text: str, sayings: Sequence[str]) -> str | None:
    """The text from one character behind the first of these that is there; None: none is."""
    return next((text.partition(saying)[2][1:] for saying in sayings if saying in text), None)
