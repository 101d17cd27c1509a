"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str = "talkhead") -> str | None:
    """Version of an installed package; None where it is not installed, as when talkhead runs from its source alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those of `packages` that are installed, by name."""
    found = {package: installed_version(package) for package in packages}
    return {package: number for package, number in found.items() if number is not None}
