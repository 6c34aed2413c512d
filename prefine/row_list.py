"""Lists of rows in the Python API."""

from __future__ import annotations

from typing import Any

from prefine.errors import MissingDependencyError


class Rows(list[dict[str, Any]]):
    """A list of rows."""

    def dataframe(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise MissingDependencyError(
                "dataframe() needs the package pandas, which is not installed", "Run: pip install pandas"
            ) from None
        return pandas.DataFrame(list(self))
