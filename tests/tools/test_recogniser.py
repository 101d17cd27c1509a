import numpy as np

from tools.recogniser import recognise


def test_recognised_phones_lie_between_pauses() -> None:
    class Phone:
        def __init__(self, name: str, start: int) -> None:
            self.name, self.start, self.duration = name, start, 10

    class Decoder:
        heard = "some words"

        def hyp(self) -> object:
            return type("Hypothesis", (), {"hypstr": self.heard})()

        def get_alignment(self) -> list[list[Phone]]:
            return [[Phone("+NSN+" if k == 3 else "AH", 10 * k + 20) for k in range(12)]]

        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **named: None

    marks = recognise(np.zeros(16000 * 2), Decoder())
    assert marks[0] == (0.0, "SIL") and marks[-1] == (1.4, "SIL")
    assert marks[4] == (0.5, "SIL") and marks[5] == (0.6, "AH")
    silent = Decoder()
    silent.heard = ""
    assert recognise(np.zeros(16000), silent) == []
