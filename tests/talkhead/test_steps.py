"""The display of steps, the time left, and what counts as done."""

import pytest

from shared.progress import progress
from talkhead import steps
from talkhead.steps import Record, Steps, TimeLeft, spoken


def test_lengths_of_time_are_told_in_words():
    assert [spoken(s) for s in (0.4, 59, 125, 4200)] == ["0 s", "59 s", "2 min 5 s", "1 h 10 min"]


def test_the_time_left_corrects_itself_as_steps_end(monkeypatch):
    monkeypatch.setattr(steps, "PRIOR_SECONDS", 0.001)
    left = TimeLeft({"a": 10, "b": 20, "c": 30})
    assert left.seconds() == pytest.approx(60)
    left.ended("a", 20)  # twice as long as expected: so will be the others
    assert left.seconds() == pytest.approx(100, rel=1e-3)
    assert left.seconds(elapsed=15) == pytest.approx(85, rel=1e-3)
    assert left.seconds(elapsed=39, own=50) == pytest.approx(110, rel=1e-3)  # what the step itself says counts
    left.ended("b", None)  # done before: that tells nothing
    assert left.seconds() == pytest.approx(60, rel=1e-3)


def test_without_a_terminal_each_step_is_a_plain_line(capsys):
    shown = Steps({"one": 5, "second": 5})
    with shown.run("one"):
        assert shown.silent
    shown.skip("second")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1/2 one     started, about 10 s left in all", "1/2 one     done in 0 s", "2/2 second  done before"]


def test_on_a_terminal_bars_stand_under_their_step(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = Steps({"one": 5, "second": 5})
    with shown.run("one"):
        with progress(4, "tracking face") as bar:
            bar.update(2)
            bar.refresh()
    said = capsys.readouterr().err
    assert "1/2 one, about" in said and "left in all · tracking face" in said and "1/2 one     done in" in said


class Product:
    """A file that a step makes, and how often it did."""

    def __init__(self, root):
        self.file, self.made, self.content = root / "product", 0, "first"
        self.forgotten = 0

    def result(self):
        return self.file.read_text() if self.file.is_file() else None

    def make(self):
        self.made += 1
        self.file.write_text(self.content)

    def forget(self):
        self.forgotten += 1

    def do(self, root, inputs):
        return Record(root / "record.json").do("step", inputs, self.result, self.make, self.forget)


def test_a_step_is_done_once_with_the_same_inputs(tmp_path):
    product = Product(tmp_path)
    assert [product.do(tmp_path, "a"), product.do(tmp_path, "a")] == [True, False]
    product.content = "second"
    assert product.do(tmp_path, "b") and product.made == 2 and product.forgotten == 2


def test_a_product_that_is_there_is_not_enough(tmp_path):
    product = Product(tmp_path)
    product.file.write_text("of somebody else")
    assert product.do(tmp_path, "a") and product.made == 1
    product.file.write_text("edited since")
    assert product.do(tmp_path, "a") and product.made == 2


@pytest.mark.parametrize("after", [False, True])
def test_a_step_that_was_killed_is_done_again_unless_it_was_done(tmp_path, after):
    product = Product(tmp_path)
    product.do(tmp_path, "a")
    product.content = "second"

    def killed():
        if after:
            product.file.write_text(product.content)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Record(tmp_path / "record.json").do("step", "b", product.result, killed)
    assert product.do(tmp_path, "b") is not after and product.result() == "second"
    assert not product.do(tmp_path, "b")
