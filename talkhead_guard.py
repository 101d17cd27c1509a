"""talkhead's packages have common names: this module refuses to go on where others of these names stand in their place.

It has a name of its own and imports nothing of the project.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
PACKAGES = ("shared", "process_data", "stage1_audio2lmk", "stage2_gaussian", "torso_styleunet", "talkhead", "serve")
REINSTALL = "install it again with `pip install --force-reinstall --no-deps talkhead`"


def check(*names: str) -> None:
    """Raise ImportError, with a sentence for the user, unless importing each of `names` gives what belongs to this file.

    Nothing is imported. The first line of each of our packages, and of cli.py, has the word talkhead in it.
    """
    for name in names:
        own = HERE / name / "__init__.py" if name in PACKAGES else HERE / f"{name}.py"
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):  # what already stands under this name is no importable module
            spec = None
        places = [spec.origin] if spec and spec.origin else [*(spec.submodule_search_locations or ())] if spec else []
        found = Path(places[0]).resolve() if places else None
        if found is None or not own.is_file():
            raise ImportError(f"talkhead is incomplete: {own} is missing; {REINSTALL}", name=name)
        if found != own:
            raise ImportError(f"another package named {name!r} is in the way: {found}; talkhead needs {own}; rename that one, "
                              "take its folder off PYTHONPATH, or start talkhead in another folder", name=name)
        with own.open(encoding="utf-8", errors="replace") as file:
            if "talkhead" not in file.readline():
                from importlib.metadata import packages_distributions  # takes longer than all the rest

                others = sorted(set(packages_distributions().get(name, ())) - {"talkhead"})
                raise ImportError(f"{' and '.join(others) or 'another package'} has written over {own}, which belongs to "
                                  "talkhead; install talkhead in a virtual environment of its own", name=name)


def check_or_exit(*names: str) -> None:
    """As `check`, but for a command: prints the sentence and ends the process with exit code 2."""
    try:
        check(*names)
    except ImportError as error:
        end(str(error))


def end(text: str) -> NoReturn:
    """Print an error and end the process."""
    print(f"Error: {text}", file=sys.stderr)
    sys.exit(2)
