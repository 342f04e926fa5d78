"""Parsers that refuse a mistake in one message: the file and line, the key, what is wrong, and the nearest valid name.

jsonargparse reports a misspelt word as a tree of everything that was tried. `explain` reads the tree for the one branch that
matters; what it does not recognise it prints as it is, without the chatter around it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser

from lit_align.nearest import (
    argument_names,
    class_names,
    classes_of,
    did_you_mean,
    field_names,
    module_names,
    near_file,
    near_name,
    shadowed,
    shown,
)

KEY = re.compile(r'Parser key "([^"]+)":\s*')
CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
FACTORY = re.compile(r"Type .* expects a function or a callable class:\s*")
CHATTER = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class '[\w.]+'>$|Expected a path but"
    r"|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with|$"
)
NUMBER_OR = re.compile(r"Expected a <class '(?:int|float)'>")
NO_CLASS_PATH = {
    "lightning.LightningModule": ("model", "DPO"),
    "lightning.LightningDataModule": ("data", "PreferenceData"),
}
PLAIN = {"str": "text", "float": "a number", "int": "a whole number", "bool": "true or false", "NoneType": "null"}


class ShortErrors(ArgumentParser):
    """A parser whose `error` prints one message and no usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits with 2; a parser inside another one passes its message up."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {explain(message, getattr(ex, 'subcommand_parser', self))}\n")
        sys.exit(2)


@dataclass(frozen=True)
class Fault:
    """The branch of a jsonargparse message that says what went wrong.

    Args:
        key: Where in the config, dotted: `model.loss`.
        class_path: The innermost class whose arguments were being read, or "".
        text: What jsonargparse says of it.
    """

    key: str
    class_path: str
    text: str

    @property
    def class_name(self) -> str:
        """The class without its module."""
        return self.class_path.rpartition(".")[2]


def original(error: Exception) -> BaseException:
    """What a constructor raised, where jsonargparse wrapped it into a report of all the types it tried."""
    cause: BaseException = error
    while cause.__cause__ is not None and str(cause).startswith("Does not validate"):
        cause = cause.__cause__
    return cause


def explain(message: str, parser: ArgumentParser) -> str:
    """One sentence for a message of jsonargparse, and where in which file the wrong word stands."""
    fault = find_fault(message)
    sentence, word = describe(fault, parser)
    key = "" if fault.key in ("", "config") else f"{fault.key}: "
    return f"{place(word, fault.key)}{key}{sentence}{'' if sentence.endswith(('?', '.')) else '.'}"


def find_fault(message: str) -> Fault:
    """The first line of a jsonargparse message that says something, with the keys and the class named on the way to it."""
    keys: list[str] = []
    class_path = ""
    for line in message.splitlines():
        rest = line.strip().removeprefix("- ")
        rest = FACTORY.sub("", rest)
        while match := KEY.match(rest) or CLASS.match(rest):
            if match.re is KEY:
                keys.append(match[1])
            else:
                class_path = match[1]
            rest = rest[match.end() :]
        if CHATTER.match(rest) or (NUMBER_OR.search(message) and "dot import path" in rest):
            continue
        # Where several sets of choices are tried, the value stands below them all.
        if (
            "typing.Literal[" in rest
            and "Got value" not in rest
            and (given := re.search(r"Given value: (\S+)", message))
        ):
            rest = f"{rest}. Got value: {given[1]}"
        # A class of torch.optim is named behind the complaint and not before it.
        if match := re.search(r"\. Got value: Namespace\(class_path='([\w.]+)'", rest):
            class_path, rest = match[1], rest[: match.start()]
        return Fault(".".join(keys), class_path, rest if "parsing config" not in rest else message)
    return Fault(".".join(keys), class_path, message)


def describe(fault: Fault, parser: ArgumentParser) -> tuple[str, str]:
    """The sentence for a fault, and the word that is wrong, "" where it is no single word."""
    for pattern, tell in TELLERS:
        if match := re.search(pattern, fault.text):
            return tell(fault, match, parser)
    return f"{fault.class_name}: {fault.text}" if fault.class_path else fault.text, ""


def unknown_option(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A key that nothing takes."""
    owner, name = match[1], match[2]
    head = name.split(".")[0]
    if fault.class_path in NO_CLASS_PATH:
        key, example = NO_CLASS_PATH[fault.class_path]
        return f"there is no class_path; say which class it is, for example `class_path: {example}`", f"{key}"
    if name == "class_path":
        return "the arguments of a class belong under `init_args:`, beside its `class_path:`", fault.key.rpartition(
            "."
        )[2]
    if not fault.class_path:
        full = name if owner is None or "Subcommand" in match[0] else f"{owner}.{name}"
        word, names = near_option(full, parser)
        return f"there is no option {word!r}{did_you_mean(word, names)}", word.rpartition(".")[2]
    if owner:
        return f"{owner} has no argument {head!r}{did_you_mean(head, field_names(fault.class_path, owner))}", head
    names = argument_names(fault.class_path) + (["init_args"] if near_name(head, ["init_args"]) else [])
    return f"{fault.class_name} has no argument {head!r}{did_you_mean(head, names)}", head


def near_option(name: str, parser: ArgumentParser) -> tuple[str, list[str]]:
    """What to compare a wrong option with: the first key alone where that is wrong already, else the whole option."""
    options = [action.dest for action in parser._actions if "help" not in action.dest and action.dest != "print_config"]
    first_keys = {option.split(".")[0] for option in options}
    head = name.split(".", maxsplit=1)[0]
    return (name, options) if head in first_keys else (head, sorted(first_keys))


def unknown_class(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A short class name that no imported class has, or none of the kind that the key takes."""
    name = match[1]
    wrong_kind = name in class_names("")
    sentence = f"{name} is of another kind than what goes here" if wrong_kind else f"there is no class {name!r}"
    return f"{sentence}{did_you_mean(name, class_names(fault.key, fault.class_path))}", name


def unknown_attribute(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A dotted class name whose module exists."""
    module, name = match[1], match[2]
    known = [*(f"{module}.{class_name}" for class_name in classes_of(module)), *module_names()]
    hint = shadowed(module) or did_you_mean(f"{module}.{name}", known)
    return f"{module} has no {name!r}{hint}", f"{module}.{name}"


def unknown_module(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A module that does not exist."""
    return f"there is no module {match[1]!r}{shadowed(match[1]) or did_you_mean(match[1], module_names())}", match[1]


def wrong_base(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A class of another kind than the key takes."""
    return f"{match[1]} is no subclass of {match[2]}", match[1]


def abstract_class(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A base class, which cannot be built."""
    return f"{match[1].rpartition('.')[2]} is only the base of what is meant here; name a class below it", match[1]


def no_class(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A value where a class is expected."""
    kind, last_key = match[1], fault.key.rpartition(".")[2]
    return f"expected a {kind}: `{last_key}: {{class_path: ..., init_args: {{...}}}}`, or its name alone", last_key


def missing(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """An argument without a default that was not given."""
    verb = "are" if "," in match[1] else "is"
    return f"{match[1]} {verb} missing{f', which {fault.class_name} needs' if fault.class_path else ''}", ""


def missing_file(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A config that does not exist."""
    return f"there is no file {shown(Path(match[1]))}{near_file(Path(match[1]))}", ""


def no_keys(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A single value where several keys are expected."""
    return f"expected keys and values here, and got {match[1]!r}", match[1]


def stray_argument(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A word on the command line that belongs to nothing."""
    word, names = near_option(match[1], parser)
    return f"there is no option {word!r}{did_you_mean(word, names)}", word


def wrong_choice(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A value that is none of the choices."""
    choices = re.findall(r"'([^']*)'", match[1])
    near = near_name(match[2], choices)
    return f"{match[2]!r} is not one of {', '.join(choices)}{f'; did you mean {near!r}?' if near else ''}", match[2]


def wrong_type(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A value of another type than the key takes."""
    types = [name.rpartition(".")[2] for name in re.findall(r"Expected a <class '([\w.]+)'>", fault.text)]
    value = re.search(r"(?:Got value|Given value): (\S+?)(?:\. Got value|\s|$)", fault.text)
    expected = " or ".join(dict.fromkeys(PLAIN.get(name, name) for name in types))
    return f"expected {expected}, and got {value[1] if value else 'something else'!r}", value[1] if value else ""


def not_yaml(fault: Fault, match: re.Match[str], parser: ArgumentParser) -> tuple[str, str]:
    """A config that cannot be read."""
    for file in config_files():
        try:
            yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"{shown(file)}{line} is not YAML: {error.problem}", ""
    return fault.text, ""


TELLERS = (
    (r"Problems parsing config", not_yaml),
    (r"(?:(?:Group|Subcommand) '([^']+)' does not accept option|Option) '([^']+)'", unknown_option),
    (r"Expected a <class '(?:int|float)'>", wrong_type),
    (r"Expected a dot import path string: (\S+)", unknown_class),
    (r"module '([\w.]+)' has no attribute '(\w+)'", unknown_attribute),
    (r"No module named '([\w.]+)'", unknown_module),
    (r"Import path (\S+) does not correspond to a subclass of (\S+)", wrong_base),
    (r"Expected an instantiatable class, but (\S+) is abstract", abstract_class),
    (r"the following arguments are required: (.+)", missing),
    (r"File does not exist: '([^']+)'", missing_file),
    (r"Unable to load config '([^']+)'", no_keys),
    (r"unrecognized arguments:\s+(?:--)?([\w.+-]+)", stray_argument),
    (r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", wrong_choice),
    (r"Not a valid subclass of (\w+)", no_class),
    (r"Expected a <class", wrong_type),
)
"""What jsonargparse says, and who tells it in a sentence. The first that fits is taken."""


def place(word: str, key: str) -> str:
    """`configs/x.yaml, line 3: ` where the word stands in a config, `command line: ` where it was typed, else ""."""
    whole_word = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    files = list(config_files())
    if not word:
        return ""
    if any(whole_word.search(argument) for argument in sys.argv[2:] if Path(argument.rpartition("=")[2]) not in files):
        return "command line: "
    last_key = key.rpartition(".")[2]
    for file in reversed(files):
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        hits = [number for number, line in enumerate(lines, 1) if whole_word.search(line)]
        if hits:
            same_key = [number for number in hits if last_key in lines[number - 1]]
            return f"{shown(file)}, line {(same_key or hits)[0]}: "
    return ""


def config_files() -> Iterator[Path]:
    """The config files that the command line names, in order."""
    for flag, value in pairwise([*sys.argv[1:], ""]):
        if flag in ("-c", "--config"):
            yield Path(value)
        elif flag.startswith("--config="):
            yield Path(flag.partition("=")[2])
