"""What is known of a network, and need not be found out again."""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from pipeline.networks.classifier import Classifier

P = ParamSpec("P")
T = TypeVar("T")


def once_for_each_network(function: Callable[Concatenate[Classifier, P], T]) -> Callable[Concatenate[Classifier, P], T]:
    """Compute something of a network once; what is known of it goes with it, and keeps no network alive."""
    known: WeakKeyDictionary[Classifier, dict[Hashable, T]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(model: Classifier, /, *args: P.args, **kwargs: P.kwargs) -> T:
        of_model = known.setdefault(model, {})
        key = (args, tuple(sorted(kwargs.items())))
        if key not in of_model:
            of_model[key] = function(model, *args, **kwargs)
        return of_model[key]

    return remembered
