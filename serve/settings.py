"""How the service is set up; made from the options of `talkhead serve`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    """`avatars` name -> path, in the order given; `folder` keeps the journal, uploads and results.

    Numbers that are None are chosen for the machine.
    """

    avatars: dict[str, str]
    folder: str
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    origins: tuple[str, ...] = ()  # besides the service's own
    device: str = "auto"
    live_workers: int | None = None
    conversations: int | None = None  # in all
    job_workers: int = 1
    queued_jobs: int = 1000
    mark: bool = True
    upload_bytes: int = 500_000_000  # of one request's body
    upload_seconds: float = 3600.0  # of sound in an upload
    keep_hours: float = 24.0  # finished results
    keep_bytes: int = 20_000_000_000  # all results together
    drain_seconds: float = 5.0  # that conversations have when the service is asked to end

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServeSettings":
        known = json.loads(text)
        return cls(**{**known, "origins": tuple(known["origins"])})

    @property
    def root(self) -> Path:
        return Path(self.folder)
