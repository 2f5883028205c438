"""Names of images, as the operator writes them to ``stockade image`` and archives have them."""

from policies import image_names
from policies.image_names import Reference
from worker.images.errors import ImageError

__all__ = ["Reference", "parse"]


def parse(text: str) -> Reference:
    """Read a name (see `policies.image_names`); ``ImageError`` when it is none."""
    try:
        return image_names.parse(text)
    except ValueError as error:
        raise ImageError("bad_name", str(error)) from None
