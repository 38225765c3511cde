"""Who may import whom: each module knows only its own floor and the floors below it."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mlx_video"
TABLE = PACKAGE.parent / "CONTRIBUTING.md"
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}


def floors() -> list[set[str]]:
    """The rooms of every floor, ground first, as CONTRIBUTING's table has them. A new module gets its place there."""
    text = TABLE.read_text(encoding="utf-8")
    _, rows = text.split("| floor | rooms |\n|---|---|\n")
    rows = rows.partition("\n\n")[0].splitlines()
    return [ROOMS & set(re.findall(r"`(\w+)/?`", row)) for row in reversed(rows)]


FLOORS = floors()
FLOORS[-1].add("__main__")
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# On the floor of the crafts, these groups do not know of each other.
CRAFTS = [
    {"models"},
    {"sampling"},
    {"media", "pictures", "postprocess", "health"},
]

TALKERS = FLOORS[-1] | {"cli", "convert", "backend.__main__"}
LANGUAGE = {
    f"models.ltx.{name}" for name in ("gemma", "tokenizer", "text_encoder", "enhance")
}
ONLY_IN = {
    "huggingface_hub": {"hub"},
    "av": {"media", "pictures"},
    "PIL": {"media", "pictures"},
    "pillow_heif": {"pictures"},
    "mlx_lm": LANGUAGE,
    "tokenizers": LANGUAGE,
    "sentencepiece": LANGUAGE,
    "transformers": LANGUAGE,
    "tqdm": TALKERS,
    "argparse": TALKERS,
}


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """Each module's name below `mlx_video` ("models.ltx.rope") and its syntax; `__init__` goes by its folder."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").removesuffix(".")
        if name:  # the package itself is the front door: it knows every room
            found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


# The functions under the names that people know them by; each says what its many arguments are.
OLD_NAMED = {"generate_video", "generate_video_dev", "generate_video_with_audio"}
MOST_PARAMETERS, MOST_LINES = 8, 60  # of a function


@cache
def functions(tree: ast.Module) -> tuple[tuple[ast.FunctionDef, bool], ...]:
    """Every function in a file, and whether it can be called from outside: by a public name and not within another."""
    return tuple(_within(tree, public=True))


def _within(tree: ast.AST, public: bool) -> Iterator[tuple[ast.FunctionDef, bool]]:
    for node in ast.iter_child_nodes(tree):
        open_ = public and not getattr(node, "name", "").startswith("_")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, open_ or public and node.name in ("__init__", "__call__")
            yield from _within(node, public=False)
        else:
            yield from _within(node, open_)


def parameters(function: ast.FunctionDef) -> int:
    """How many parameters a caller may give."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return sum(arg is not None and arg.arg not in ("self", "cls") for arg in named)


def within(name: str, rooms: set[str]) -> bool:
    """Whether a module is one of ``rooms`` or lies in one."""
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree))


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in a file, dotted; `from mlx_video import media` counts as `mlx_video.media`."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            whole = node.module == "mlx_video"
            yield from (
                (f"mlx_video.{alias.name}" for alias in node.names)
                if whole
                else [node.module]
            )


def neighbours(tree: ast.Module) -> Iterator[str]:
    """The rooms of this package that a file imports; a name such as `__version__` is none."""
    for name in imports(tree):
        top, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if top == "mlx_video" and room in FLOOR:
            yield room


def talks(tree: ast.Module) -> Iterator[str]:
    """What only a door may do: print, or end the process."""
    for node in nodes(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield "prints"
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit"):
                yield "exits"
            case ast.Name(id="SystemExit" | "exit" | "quit"):
                yield "exits"


def test_every_module_has_one_floor():
    assert len(FLOORS) == 9 and "errors" in FLOORS[0] and "generate" in FLOORS[-1]
    homeless = [name for name, _ in modules() if name.split(".")[0] not in FLOOR]
    assert not homeless, f"give them a floor in CONTRIBUTING.md: {homeless}"
    twice = [a & b for a, b in combinations(FLOORS, 2) if a & b]
    assert not twice, f"these stand on two floors in CONTRIBUTING.md: {twice}"


def test_imports_go_down():
    bad = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in neighbours(tree)
        if FLOOR[target] > FLOOR.get(name.split(".")[0], len(FLOORS))
    ]
    assert not bad, "\n".join(bad)


def test_crafts_are_strangers():
    forbidden = {
        (a, b) for one, other in permutations(CRAFTS, 2) for a in one for b in other
    }
    bad = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in neighbours(tree)
        if (name.split(".")[0], target) in forbidden
    ]
    assert not bad, "\n".join(bad)


def test_outside_packages_stay_in_their_rooms():
    bad = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        if not within(name, ONLY_IN.get(target.partition(".")[0], {name}))
    ]
    assert not bad, "\n".join(bad)


def test_types_need_only_mlx_and_numpy():
    tree = dict(modules())["types"]
    roots = {name.partition(".")[0] for name in imports(tree)}
    assert roots - sys.stdlib_module_names <= {"mlx", "numpy", "mlx_video"}
    assert set(neighbours(tree)) <= {"errors", "clip_limits"}


def test_only_doors_talk():
    bad = [
        f"{name} {what}"
        for name, tree in modules()
        for what in talks(tree)
        if not within(name, TALKERS)
    ]
    assert not bad, "\n".join(bad)


def test_no_public_function_has_many_parameters():
    bad = [
        f"{name}.{function.name} has {parameters(function)}"
        for name, tree in modules()
        for function, public in functions(tree)
        if public and function.name not in OLD_NAMED
        if parameters(function) > MOST_PARAMETERS
    ]
    assert not bad, "\n".join(bad)


def test_no_function_is_longer_than_a_page():
    bad = [
        f"{name}.{function.name} has {lines} lines"
        for name, tree in modules()
        for function, _ in functions(tree)
        if (lines := function.end_lineno - function.lineno + 1) > MOST_LINES
    ]
    assert not bad, "\n".join(bad)
