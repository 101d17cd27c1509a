"""What makes a synthetic actor an ordinary person: hair, things worn, light, room, liveliness."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from process_data.actor.identity import Identity, make_identity
from shared.errors import TalkheadError

HAIR = ("short", "long", "curly", "braids")
TURN, NOD = 10.0, 6.0  # degrees of yaw and pitch of the calm speaker
DARK_SKIN, BLACK_HAIR = (0.36, 0.23, 0.16), (0.075, 0.060, 0.055)  # sRGB


@dataclass(frozen=True)
class Look:
    """How an actor looks and moves; the default is the calm, short-haired person in a jacket.

    hair: "short", "long" (straight, some of it before and some behind the shoulders), "curly" or "braids" (one over each
    shoulder); bun: a knot of hair behind and above the crown; dark_skin: and black hair; hand: a hand passes before neck and
    chin now and then; exposure: share by which the film's brightness wanders; dark_room: the room is as dark as the hair;
    turn, nod: degrees of yaw and pitch, reached again and again and fast where they are not the calm speaker's; glances: degrees
    that the eyes turn from the camera to either side, now and then. Raises TalkheadError for hair of another name and for
    amplitudes beyond 45° (turn), 25° (nod, glances) and 0.5 (exposure).
    """

    hair: str = "short"
    bun: bool = False
    beard: bool = False
    glasses: bool = False
    earrings: bool = False
    bare_shoulders: bool = False
    dark_skin: bool = False
    hand: bool = False
    exposure: float = 0.0
    dark_room: bool = False
    turn: float = TURN
    nod: float = NOD
    glances: float = 0.0

    def __post_init__(self) -> None:
        if self.hair not in HAIR:
            raise TalkheadError(f"the actor's hair should be one of {', '.join(HAIR)}; found {self.hair!r}")
        for name, value, most in (("turn", self.turn, 45), ("nod", self.nod, 25), ("glances", self.glances, 25),
                                  ("exposure", self.exposure, 0.5)):
            if not 0 <= value <= most:
                raise TalkheadError(f"the actor's {name} should be from 0 to {most}; found {value}")

    @property
    def covers_ears(self) -> bool:
        return self.hair in ("long", "curly")

    def changes(self) -> dict[str, Any]:
        """What differs from the default look."""
        plain = asdict(Look())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


PLAIN = Look()
LOOKS = {  # examples that together have every trouble
    "long": Look(hair="long", turn=30, nod=12),
    "bun": Look(bun=True, earrings=True, bare_shoulders=True, dark_skin=True, turn=20, nod=15),
    "curly": Look(hair="curly", earrings=True, turn=30, nod=12),
    "braids": Look(hair="braids", bun=True, bare_shoulders=True, turn=30, nod=15),
    "beard": Look(beard=True, glasses=True, turn=30, nod=12),
    "hand": Look(hand=True, exposure=0.25, glasses=True, turn=20, nod=10),
    "dark room": Look(hair="long", dark_room=True, dark_skin=True, exposure=0.25, turn=30, nod=12),
    "dark braids": Look(hair="braids", bare_shoulders=True, dark_room=True, dark_skin=True, earrings=True, turn=30, nod=12),
}


def person(seed: int, look: Look) -> Identity:
    """The person of this seed, with the colours of skin and hair that the look wants."""
    identity = make_identity(seed)
    return replace(identity, skin=DARK_SKIN, hair=BLACK_HAIR) if look.dark_skin else identity
