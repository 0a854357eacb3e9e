"""RepoQA's rule (arXiv 2406.06025) as SCBench has it (fb56c91, repo_qa_utils.py): which function is repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

BLOCK = re.compile(r"^```\w*\s*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LEAST = 0.8
# The node that is a function in the tree of each language.
NODES = {
    "python": "function_definition",
    "java": "method_declaration",
    "typescript": "function_declaration",
    "rust": "function_item",
    "cpp": "function_definition",
    "go": "function_declaration",
}


def repeated_function(prediction: str, truth: str, all_classes: Sequence[str] | None) -> float:
    """1 if of all functions asked about in the repository the right one is nearest, with a BLEU-4 of 0.8 or more.

    all_classes: the language, one of NODES, then these functions.
    """
    if not all_classes:
        raise ValueError("the metric repeated_function needs a language and functions; it is for SCBench's RepoQA only")
    language, *functions = all_classes
    said = said_function(prediction, language)
    likeness = [bleu(said, function) for function in functions]
    best = max(likeness, default=0.0)
    return float(best >= LEAST and functions[likeness.index(best)] == truth)


def said_function(prediction: str, language: str) -> str:
    """The first function in a block of code, else the first block, else all of the prediction."""
    blocks = BLOCK.findall(prediction.strip())
    for block in blocks:
        if (function := first_function(block, language)) is not None:
            return function
    return str(blocks[0]) if blocks else prediction.strip()


def first_function(code: str, language: str) -> str | None:
    """The text of the first function in some code; None: there is none."""
    data = code.encode()
    nodes = walk(parser(language).parse(data).root_node)
    return next((data[n.start_byte : n.end_byte].decode() for n in nodes if is_function(n, language)), None)


def is_function(node: Any, language: str) -> bool:
    """Whether a node is a function. In C++ these are the free ones that return no pointer or reference."""
    if node.type != NODES[language] or language != "cpp":
        return bool(node.type == NODES[language])
    declared = node.child_by_field_name("declarator")
    if declared is None or declared.type != "function_declarator":
        return False
    name = declared.child_by_field_name("declarator")
    return name is not None and name.type == "identifier"


def walk(node: Any) -> Iterator[Any]:
    """A node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def bleu(said: str, function: str) -> float:
    """BLEU-4 of the words between blanks, smoothed by the fourth method of Chen and Cherry (2014)."""
    # Imported here, because it takes a second.
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words = said.split()
    return (
        float(sentence_bleu([function.split()], words, smoothing_function=SmoothingFunction().method4))
        if words
        else 0.0
    )


@cache
def parser(language: str) -> Any:
    """The parser of a language, one of NODES. Raises ValueError where its package is not installed."""
    try:
        from tree_sitter import Language, Parser

        grammar = import_module(f"tree_sitter_{language}")
    except ImportError:
        raise ValueError(
            f"the metric repeated_function needs the parsers of code (tree_sitter_{language}): pip install '.[repoqa]'"
        ) from None
    name = "language_typescript" if language == "typescript" else "language"
    return Parser(Language(getattr(grammar, name)()))
