"""Concepts: the directions in a layer's features that a set of images shares, what they count, and tests of them.

The names below are the public face of this package.
"""

from typing import TYPE_CHECKING

from konkyo.utils.lazy import lazy

if TYPE_CHECKING:
    from konkyo.concepts.activation_vectors import ConceptTest, tcav
    from konkyo.concepts.factorisation import Concepts, factorise
    from konkyo.concepts.importance import Importance

__all__ = ["ConceptTest", "Concepts", "Importance", "factorise", "tcav"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "konkyo.concepts.factorisation": ("Concepts", "factorise"),
        "konkyo.concepts.importance": ("Importance",),
        "konkyo.concepts.activation_vectors": ("ConceptTest", "tcav"),
    },
)
