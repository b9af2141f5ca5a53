"""The container images: the operator's, from the `Dockerfile`, and one of database clients for queries from pods."""

from functools import cache

from tests.support.images.build import CLIENT, OPERATOR, BuiltImage, ImageError, Recipe, build

__all__ = ["CLIENT", "OPERATOR", "BuiltImage", "ImageError", "Recipe", "build", "build_client_image", "build_image"]


@cache
def build_image() -> BuiltImage:
    """The image that runs operator and forwarders, one for the whole process. Raises ImageError."""
    return build(OPERATOR)


@cache
def build_client_image() -> BuiltImage:
    """The image with psql, mysql and the Python drivers. Raises ImageError."""
    return build(CLIENT)
