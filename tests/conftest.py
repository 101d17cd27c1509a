"""What all tests share: an environment, and what is dear to make and therefore made once a run."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes: each keeps to one processor
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell starts its background jobs so, and what the tests start would inherit it and be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# With several test processes these files go first, so that nobody waits at the end for one that began late
LONGEST = ("test_packaging.py", "test_end_to_end.py", "test_pipeline.py", "test_adnerf.py", "test_bad_inputs.py",
           "test_editability.py", "test_public.py", "test_people.py", "test_any_machine.py", "test_train.py", "test_workers.py",
           "test_kill.py", "test_transformers_training.py", "test_edited_files.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def settings_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that signs videos, made where it is first needed, is one of the tests and not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "settings"))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)` -> a folder that `make(folder)` has filled: once a run, however many test processes ask.

    Tests read it or copy it, for others read it too.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which all test processes have in common

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / "shared" / name, base / "shared" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with open(base / "shared" / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def chain(made_once) -> Path:
    """A folder with the clip `me`, the avatar `me.avatar` and two seconds of an unheard sentence, `unheard.wav`.

    The user's commands made them, of a few seconds of the synthetic actor.
    """
    def make(root: Path) -> None:
        from process_data.actor.actor import actor_landmarks, make_actor
        from shared.landmarks import save_landmarks
        from shared.media.audio_io import save_wav
        from tests.commands import talkhead

        truth = make_actor(root, size=128, seconds=6.4, seed=0, quiet=True)
        talkhead("process", truth.video, "me", cwd=root)
        talkhead("stage1", "finetune", "me", "--set", "steps=100", "--set", "voice_augmentation=false", cwd=root)
        talkhead("stage2", "train", "me", "--set", "steps=150", cwd=root)
        talkhead("torso", "train", "me", "--set", "steps=25", "--set", "channels=8", cwd=root)
        sound, spoken = actor_landmarks("test", seed=0)
        save_wav(root / "unheard.wav", sound[: 2 * 16000])
        save_landmarks(root / "spoken.npy", spoken[:50])

    return made_once("chain", make)


@pytest.fixture
def realdata_dir() -> Path:
    """The folder of real recordings beside the checkout; tests that ask for it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data: the real recordings are not part of the project")
    return folder
