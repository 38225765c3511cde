"""A hook of mkdocs that writes the options of every command into options.md, from the parser itself."""

import argparse
from typing import Iterator


def on_page_markdown(markdown: str, page, **_) -> str:
    if page.file.src_uri != "options.md":
        return markdown
    return "\n".join([markdown, *options()])


def options() -> Iterator[str]:
    """Lines of Markdown: each command with a table of its options."""
    from mlx_video.cli.commands import main_parser

    subparsers = next(
        action
        for action in main_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    about = {choice.dest: choice.help for choice in subparsers._choices_actions}
    for name, command in subparsers.choices.items():
        yield f"\n## {name}\n\n{_sentence(about[name])}\n\n| option | |\n|---|---|"
        for action in command._actions:
            if action.dest != "help" and action.help is not argparse.SUPPRESS:
                yield _row(action)


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
    values = (
        f" `{_value(action)}`" if action.nargs != 0 and action.option_strings else ""
    )
    help = (action.help or "").replace("%%", "%")
    return f"| {names}{values} | {_escaped(_sentence(help))} |"


def _value(action: argparse.Action) -> str:
    """What stands for an option's value."""
    if action.choices:
        return " or ".join(map(str, action.choices))
    words = action.metavar or action.dest.upper()
    return words if isinstance(words, str) else " ".join(words)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "." if words else ""


def _escaped(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;")
