import pytest

from serve.playhead import Playhead


def test_a_row_is_due_every_40_ms():
    head = Playhead(10.0)
    assert [head.due(10 + k / 25) for k in range(100)] == list(range(100))
    assert head.due(10.039) == 0


def test_late_sound_holds_it_up_and_what_comes_then_is_due_at_once():
    head = Playhead(0.0)
    head.wait(1.0, 4)  # row 4 was the last there is
    assert head.due(1.0) == 4 and head.due(1.04) == 5
    head.wait(1.0, 30)  # nothing to wait for
    assert head.due(1.0) == 4


@pytest.mark.parametrize("speed", [0.999, 1.001])
def test_it_follows_a_client_whose_clock_runs_at_another_speed(speed):
    """A thousandth is a second in 17 minutes; without steering the lead would grow by 45 rows in half an hour."""
    steered, free = Playhead(0.0), Playhead(0.0)
    for second in range(1, 1801):
        played = 25 * speed * (second - 0.1)
        steered.heard(float(second), played)
    lead = 25 * speed * (1800 - 0.1)
    assert abs(steered.due(1800.0) - lead - 2.5) <= 2
    assert abs(free.due(1800.0) - lead - 2.5) > 40


def test_a_client_that_says_nonsense_moves_it_by_one_row_a_report():
    head = Playhead(0.0)
    head.heard(1.0, 23)
    head.heard(2.0, 1e9)
    assert abs(head.due(2.0) - 50) <= 1
