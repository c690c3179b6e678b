"""Several steps, each of which may find something wrong; the user hears of all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worthit.errors import CaseError, InputError


class Problems:
    """Collects what input errors say: `with found: step()`, and in the end `found.raise_any()`.

    >>> found = Problems()
    >>> with found:
    ...     raise CaseError("seq: missing")
    >>> with found.at("hardware"):
    ...     raise CaseError("n_devices must be at least 1, got 0")
    >>> print(CaseError(*found))
    2 problems
      seq: missing
      hardware: n_devices must be at least 1, got 0
    """

    def __init__(self) -> None:
        self._errors: list[InputError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __iter__(self) -> Iterator[str]:
        for error in self._errors:
            prefix = f"{error.context}: " if error.context else ""
            for message in error.problems:
                yield prefix + message

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, InputError):
            self._errors.append(error)
            return True
        return False

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """As the plain form, with `where` put in front of each problem."""
        try:
            yield
        except InputError as error:
            self._errors.append(error.within(where))

    def raise_any(self, context: str = "") -> None:
        """Raise what was found: one error as it came, several as one `CaseError`."""
        if not self._errors:
            return
        error = self._errors[0] if len(self._errors) == 1 else CaseError(*dict.fromkeys(self))
        raise error.within(context) if context else error


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` in front of an input error that passes through."""
    try:
        yield
    except InputError as error:
        raise error.within(where) from None
