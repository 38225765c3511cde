"""`mlx-video check`: what it finds on this machine, and that it would notice what is wrong."""

import json
import math

import mlx.core as mx
import pytest

from mlx_video import check, cli
from mlx_video.check import Check, run, summary, table

GOOD = Check("fp8", 1e-4, lambda: mx.arange(4.0))
THOROUGH = (table.convolutions, table.limits, table.clip)
STORED = {"fp8": summary(mx.arange(4.0))}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Only the numbers of ``GOOD`` are stored."""
    file = tmp_path / "stored.json"
    file.write_text(json.dumps(STORED))
    monkeypatch.setattr(check, "STORED", file)


@pytest.mark.slow
def test_every_check_has_stored_numbers_and_a_name_of_its_own():
    names = [each.name for each in table.checks()]
    assert len(set(names)) == len(names) > 150
    assert sorted(names) == sorted(json.loads(check.STORED.read_text()))
    assert check.STORED.stat().st_size < 12_000


@pytest.mark.parametrize(
    "group",
    [
        *(table.kernels, table.sound, table.weights),
        pytest.param(table.attention, marks=pytest.mark.slow),
        *(pytest.param(g, marks=pytest.mark.thorough) for g in THOROUGH),
    ],
)
def test_this_machine_passes(group):
    wrong = [outcome for outcome in run(group()) if not outcome.ok]
    assert not wrong


def test_numbers_are_drawn_alike_everywhere():
    assert table.drawn(3).tolist() == pytest.approx([1.764052, 0.400157, 0.978738])


@pytest.mark.parametrize(
    "compute, error",
    [
        (lambda: mx.arange(4.0), 0),
        (lambda: mx.zeros(4), 3 / math.sqrt(4.25)),
        (lambda: mx.array([0.0, 1.0, 2.0, math.nan]), math.nan),
    ],
)
def test_the_error_is_a_share_of_what_is_expected(compute, error, stored):
    (outcome,) = run([GOOD._replace(compute=compute)])
    assert outcome.ok is (error == 0)
    assert outcome.error == pytest.approx(error, rel=1e-4, nan_ok=True)


def test_half_of_zeros_is_noticed(stored):
    halved = lambda: mx.where(mx.arange(4) < 2, mx.arange(4.0), 0)
    (outcome,) = run([GOOD._replace(compute=halved)])
    assert not outcome.ok and outcome.error > 0.5


def test_a_device_other_than_the_cpu_is_compared_with_it_in_full(stored, monkeypatch):
    """The stored numbers are met, but one number between them is wrong on the 'GPU'."""
    results = iter([mx.array([0.0, 1.5, 2.0, 3.0]), mx.arange(4.0)])
    monkeypatch.setattr(check, "summary", lambda _: STORED["fp8"])
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    (outcome,) = run([GOOD._replace(compute=lambda: next(results))])
    assert outcome.error == pytest.approx(0.5 / math.sqrt(3.5)) and not outcome.ok


def broken():
    raise RuntimeError("[metal] Command buffer execution failed")


def test_the_table_and_the_report_say_what_is_wrong(
    stored, monkeypatch, tmp_path, capsys
):
    checks = [GOOD, GOOD._replace(compute=lambda: -mx.arange(4.0)), Check("b", 1, broken)]  # fmt: skip
    monkeypatch.setattr(table, "checks", lambda: checks)
    report = tmp_path / "new" / "report.json"
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "-o", str(report)])
    assert ended.value.code == cli.FAULT
    told = capsys.readouterr()
    rows = told.out.splitlines()[1:]
    assert [row.split()[3] for row in rows[:2]] == ["ok", "WRONG"]
    assert "Command buffer execution failed" in rows[2]
    assert "2 of 3 checks failed" in told.err and str(report) in told.err
    found = json.loads(report.read_text())
    assert found["finished"] and found["device"] == str(mx.default_device())
    assert [each["ok"] for each in found["checks"]] == [True, False, False]


def test_a_check_that_ends_the_process_leaves_those_before_it(
    stored, monkeypatch, tmp_path
):
    def killed():
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "checks", lambda: [GOOD, Check("b", 1, killed)])
    report = tmp_path / "report.json"
    assert cli.main(["check", "-o", str(report)]) == cli.INTERRUPTED
    found = json.loads(report.read_text())
    assert not found["finished"] and len(found["checks"]) == 1


def test_all_well_is_exit_code_0(stored, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "checks", lambda: [GOOD])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check"]) == 0
    assert "All 1 checks passed" in capsys.readouterr().err
    assert (tmp_path / "mlx-video-check.json").is_file()


def test_a_report_that_cannot_be_written_is_told_before_any_check(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(table, "checks", pytest.fail)
    assert cli.main(["check", "-o", str(tmp_path)]) == cli.BAD_INPUT
    assert "cannot be written: is a directory" in capsys.readouterr().err
