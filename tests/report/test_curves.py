from pathlib import Path

from lit_align.report.curves import Curve, read_curves


def test_reads_each_metric_where_it_was_logged(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,train/loss,val/loss\n0,9,2.5,\n0,19,1.5,\n0,19,,2.25\n1,29,nan,-inf\n")
    assert read_curves(file) == {
        "train/loss": Curve([9, 19, 29], [2.5, 1.5, None]),
        "val/loss": Curve([19, 29], [2.25, None]),
    }


def test_whole_lines_with_a_step_count(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,a,b\n1,1.0,2.0\n2,3.0\n,4.0,5.0\nx,6.0,\n3,0.7")
    assert read_curves(file) == {"a": Curve([1, 2], [1.0, 3.0]), "b": Curve([1], [2.0])}


def test_nothing_was_logged(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "metrics.csv") == {}
    (tmp_path / "metrics.csv").touch()
    assert read_curves(tmp_path / "metrics.csv") == {}


def test_thinned_keeps_spikes_ends_and_holes() -> None:
    values: list[float | None] = [0.0] * 10_000
    values[1234], values[5678], values[9000] = 7.0, -7.0, None
    thin = Curve(list(range(10_000)), values).thinned(100)
    assert len(thin.steps) <= 103
    points = dict(zip(thin.steps, thin.values, strict=True))
    assert points[1234] == 7.0
    assert points[5678] == -7.0
    assert points[9000] is None
    assert thin.steps[0] == 0
    assert thin.steps[-1] == 9999
    assert thin.steps == sorted(thin.steps)


def test_thinned_leaves_a_short_curve_alone_and_bounds_one_without_numbers() -> None:
    short = Curve([1, 2], [1.0, None])
    assert short.thinned(2) is short
    assert len(Curve(list(range(1000)), [None] * 1000).thinned(100).steps) <= 51
