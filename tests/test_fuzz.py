"""Thousands of bad inputs: each is answered in a sentence that names it, quickly; none is accepted."""

import re
import signal
from contextlib import contextmanager

import pytest

from mlx_video.errors import UserError
from tests.fuzz import Case, cases

LONGEST = 400  # letters of an answer, its file's folder not counted
SECONDS = 20  # for one input; the slowest takes a tenth of one
# Words of the libraries and the language, which tell a user nothing.
FOREIGN = re.compile(
    r"(?-i:\[(?!null|true|false)[a-z_]+\] )|Errno|Traceback|max\(\) arg|NoneType|<class|object has no attribute|not subscriptable|unhashable|codec|"
    r"invalid literal|could not convert|unsupported operand|out of range|dictionary update|Expecting |JSONDecode|"
    r"argument|KeyError|must be str|takes \d+ positional|std::|recursion|unpack requires|expected bytes",
    re.IGNORECASE,
)


@contextmanager
def limited(seconds: int):
    def stop(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(case: Case) -> str:
    """What is wrong with the answer to a bad input; empty if nothing is."""
    try:
        with limited(SECONDS):
            case.read()
    except UserError as error:
        said = str(error)
    except Exception as error:  # whatever it is, it is not an answer
        return f"{type(error).__name__}: {error}"
    else:
        return "was accepted"
    if case.names not in said:
        return f"does not name {case.names}: {said}"
    if len(said.replace(case.names, "")) > LONGEST:
        return f"is {len(said)} letters long: {said}"
    found = FOREIGN.search(said.replace(case.names, ""))
    return f"speaks foreign words ({found[0]}): {said}" if found else ""


def check(folder, seed: int, count: int):
    found = [(case.title, fault(case)) for case in cases(seed, count, folder)]
    faults = [f"{title}\n    {told}" for title, told in found if told]
    assert len(found) == count
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:40])


@pytest.mark.slow
def test_300_bad_inputs_are_answered(tmp_path):
    check(tmp_path, seed=0, count=300)


@pytest.mark.slow
@pytest.mark.thorough
def test_3000_bad_inputs_are_answered(tmp_path):
    check(tmp_path, seed=1, count=3000)


def test_the_same_seed_makes_the_same_inputs(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = ([c.title for c in cases(5, 20, tmp_path / n)] for n in "ab")
    assert one == other


@pytest.mark.parametrize(
    "read, told",
    [
        (lambda: None, "was accepted"),
        (lambda: [][0], "IndexError"),
        (lambda: _raise("x: [addmm] no"), "foreign"),
        (lambda: _raise("nothing"), "does not name x"),
        (lambda: _raise("x" + "y" * 500), "letters long"),
        (lambda: _raise("x is bad; use y"), ""),
    ],
)
def test_a_bad_answer_is_told_from_a_good_one(read, told):
    assert told in fault(Case("", "x", read)) and bool(told) == bool(
        fault(Case("", "x", read))
    )


def _raise(text: str):
    raise UserError(text)
