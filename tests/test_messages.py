"""Every error that the sources raise, read from their syntax trees: one line, with the value, and with what helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ddcm_fast import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("ddcm_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}

#: Words of which a message has one, at least: what is allowed or what to do. "not supported" says neither.
_HELP = re.compile(
    r"\b(must|choose|give|name|use|takes?|needs?|at least|at most|only|load|install|register|raise|lower|make|scale|"
    r"crop|resize|ask for|leave|save|convert|set|try|pass|call|end|say|replay|decode|train|update|neither|belong|"
    r"has labels|list_models|in Python)\b|; available:|pipelines are:|configuration is not supported: "
)
#: What is said of a damaged file, whose numbers help nobody, and of numbers that are none.
_DAMAGED = re.compile(r"\b(corrupt|truncated|damaged|NaN)\b")

#: Of a file or a folder that is named and not there, or what the system or another message of these goes on to say.
_NAMED = re.compile(r"^no such .*: \{|\{[^}]*(error|said|INSTEAD)[^}]*\}$")

#: Of messages that are made elsewhere or where there is no value to show: the beginning of each.
_WITHOUT_VALUE = (
    "an edit needs a target:",
    "--ccfg guides towards a condition:",
    "give --task for a known degradation",
    "--sigma, --mask and --simulate belong to --task;",
    "--quality, --faces and --align belong to --restorer;",
    "completion needs shtab:",
    "data sets need the package datasets:",
    "--engine ray needs the package ray:",
    "jxl needs pillow-jxl-plugin:",
    "BD-rates need bjontegaard:",
    "curves need matplotlib:",
    "a plot needs matplotlib:",
    "- stands for one file;",
    "the page needs gradio:",
    "the digits data need scikit-learn:",
    "aligning faces needs facexlib:",
    "the rule 'rcc' needs the package constriction:",
    "no step was taken yet:",
    "no face was found in the image;",
    "standard input is closed;",
    "standard output is closed;",
    "the steps of a run must follow one another,",
    "a scheduler does not have the pipeline's networks:",
    "the file was made with a condition that does not travel in it;",
    "the file was made by DDCMScheduler in a pipeline:",
    "calibration needs at least one image",
    "the mask is black everywhere:",
    "this scheduler's configuration is not supported:",
    "the scheduler has zero terminal SNR,",
    "the flow scheduler has inverted sigmas:",
    "load_model runs no code of a model;",
)


class Message(NamedTuple):
    where: str
    kind: str
    text: str  # of values the expression in braces


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can be, values in braces; nothing of one that is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, (ast.Constant, ast.FormattedValue))
        )


def messages() -> Iterator[Message]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES and node.args:
                for text in texts(node.args[0]):
                    yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", node.func.id, text)


MESSAGES = list(messages())


def faults(message: Message) -> list[str]:
    text, found = message.text, []
    if "\n" in text or text.endswith(".") or not text.strip():
        found.append("is not one line without a full stop")
    said = re.sub(r"{[^}]*}", "", text)
    if not (_HELP.search(said) or _DAMAGED.search(said) or _NAMED.search(text)):
        found.append("does not say what is allowed or what to do")
    if "{" not in text and not _DAMAGED.search(text) and not text.startswith(_WITHOUT_VALUE):
        found.append("shows no value")
    return found


@pytest.mark.parametrize("kind", sorted({message.kind for message in MESSAGES}))
def test_messages_teach(kind: str) -> None:
    bad = [f"{m.where}: {m.text!r} {f}" for m in MESSAGES if m.kind == kind for f in faults(m)]
    assert not bad, "\n".join(bad)


def test_all_are_read() -> None:
    assert len(MESSAGES) > 250
    assert [known for known in _WITHOUT_VALUE if not any(m.text.startswith(known) for m in MESSAGES)] == []


def test_the_rule_sees_what_it_should() -> None:
    assert faults(Message("", "", "K is {K}; it must be at least 1")) == []
    assert faults(Message("", "", "the header is corrupt")) == []
    assert len(faults(Message("", "", "bad value"))) == 2
    assert faults(Message("", "", "the scheduler {name} is not supported")) == [
        "does not say what is allowed or what to do"
    ]
    assert faults(Message("", "", "K is {K}.\nPlease give another")) == ["is not one line without a full stop"]
