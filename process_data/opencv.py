"""Is the OpenCV that is installed the one with the contrib modules, of which the matte needs one?"""

from shared.errors import TalkheadError


def require_contrib() -> None:
    """Raise TalkheadError, with the fix behind the last semicolon, where `cv2.ximgproc` is missing."""
    import cv2

    if not hasattr(getattr(cv2, "ximgproc", None), "guidedFilter"):
        raise TalkheadError(f"OpenCV {getattr(cv2, '__version__', '')} here lacks cv2.ximgproc: opencv-contrib-python is not "
                            "installed, or opencv-python, installed beside it, has written over it; run `pip uninstall -y "
                            "opencv-python opencv-python-headless`, then `pip install --force-reinstall --no-deps "
                            "opencv-contrib-python`")
