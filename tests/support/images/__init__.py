"""The container images: the operator's, from the `Dockerfile`, and one of database clients for queries from pods."""

from tests.support.images.build import CLIENT, OPERATOR, BuiltImage, ImageError, Recipe, build, retagged

__all__ = ["CLIENT", "OPERATOR", "BuiltImage", "ImageError", "Recipe", "build", "retagged"]
