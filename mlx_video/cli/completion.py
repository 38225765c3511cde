"""Completion scripts for shells, made from the parser itself."""

import argparse

from mlx_video.cli.terminal import tell

BASH = """\
_mlx_video() {{
    local words="{commands}"
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -o default -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _mlx_video mlx-video"""

FISH_COMMAND = (
    "complete -c mlx-video -n __fish_use_subcommand -a {command} -d {about!r}"
)
FISH_OPTION = "complete -c mlx-video -n '__fish_seen_subcommand_from {command}' -l {option} -d {about!r}"


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def completion(args: argparse.Namespace) -> None:
    """Print a completion script for bash, zsh or fish.

    ``eval "$(mlx-video completion bash)"`` puts it to use.
    """
    actions = args.main._actions
    subparsers = next(a for a in actions if isinstance(a, argparse._SubParsersAction))
    commands = subparsers.choices
    about = {choice.dest: choice.help for choice in subparsers._choices_actions}
    if args.shell == "fish":
        return tell("\n".join(_fish(commands, about)))
    cases = "\n".join(
        f'        {name}) words="{" ".join(_flags(command))}" ;;'
        for name, command in commands.items()
    )
    script = BASH.format(commands=" ".join(commands), cases=cases)
    start = "autoload -U +X bashcompinit && bashcompinit\n"
    tell(start + script if args.shell == "zsh" else script)


def _fish(commands, about):
    for name, command in commands.items():
        yield FISH_COMMAND.format(command=name, about=about[name])
        for flag, told in _flags(command).items():
            yield FISH_OPTION.format(command=name, option=flag[2:], about=told)


def _flags(command: argparse.ArgumentParser) -> dict[str, str]:
    """The long options of a command, and what each does."""
    every = [(f, action) for action in command._actions for f in action.option_strings]
    return {f: (a.help or "").replace("%%", "%") for f, a in every if f[:2] == "--"}
