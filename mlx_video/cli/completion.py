"""Completion scripts for shells, made from the parser itself."""

import argparse
from typing import Iterator, Mapping

from mlx_video.cli.terminal import tell

BASH = """\
_mlx_video() {{
    local words="{commands}"
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    esac
    COMPREPLY=($(compgen -o default -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _mlx_video mlx-video"""
# macOS starts zsh without its completion.
ZSH = """\
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit -i
bashcompinit
"""

FISH_COMMAND = (
    "complete -c mlx-video -n __fish_use_subcommand -f -a {command} -d {about!r}"
)
FISH_WORDS = "complete -c mlx-video -n '__fish_seen_subcommand_from {command}' {words}"

Actions = Mapping[str, argparse.Action]


def add_completion(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.epilog = (
        'In ~/.bashrc or ~/.zshrc: eval "$(mlx-video completion bash)", or zsh. '
        "In fish: mlx-video completion fish | source."
    )


def completion(args: argparse.Namespace) -> None:
    """Print a completion script for bash, zsh or fish."""
    actions = args.main._actions
    subparsers = next(a for a in actions if isinstance(a, argparse._SubParsersAction))
    about = {choice.dest: choice.help for choice in subparsers._choices_actions}
    if args.shell == "fish":
        tell("\n".join(_fish(subparsers.choices, about)))
    else:
        start = ZSH if args.shell == "zsh" else ""
        tell(start + _bash(subparsers.choices))


def _bash(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    def case(name: str, words: str) -> str:
        return f'        {name}) words="{words}" ;;'

    cases, values = [], {}
    for name, command in commands.items():
        flags = _flags(command)
        cases.append(case(name, " ".join([*flags, *_places(command)])))
        values |= {f: _choices(a) for f, a in flags.items() if a.nargs != 0}
    return BASH.format(
        commands=" ".join(commands),
        cases="\n".join(cases),
        values="\n".join(case(*item) for item in values.items()),
    )


def _fish(
    commands: Mapping[str, argparse.ArgumentParser], about: Mapping[str, str]
) -> Iterator[str]:
    for name, command in commands.items():
        yield FISH_COMMAND.format(command=name, about=about[name])
        if places := " ".join(_places(command)):
            yield FISH_WORDS.format(command=name, words=f"-f -a {places!r}")
        for flag, action in _flags(command).items():
            told = (action.help or "").replace("%%", "%")
            words = f"-l {flag[2:]} -d {told!r}"
            if action.nargs != 0:
                choices = _choices(action)
                words += f" -x -a {choices!r}" if choices else " -r"
            yield FISH_WORDS.format(command=name, words=words)


def _flags(command: argparse.ArgumentParser) -> Actions:
    """The long options of a command."""
    every = [(f, action) for action in command._actions for f in action.option_strings]
    return {f: action for f, action in every if f[:2] == "--"}


def _places(command: argparse.ArgumentParser) -> list[str]:
    """The words that a command takes without an option."""
    return [_choices(a) for a in command._actions if a.choices and not a.option_strings]


def _choices(action: argparse.Action) -> str:
    """What an option may be; empty for a file, a number or a sentence."""
    return " ".join(map(str, action.choices or ()))
