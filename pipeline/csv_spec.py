"""The section `source.csv` of a configuration says how csv and tsv files are written.

Like config.py, this file only says what was asked for.
"""

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CsvSpec:
    """This section says how the fields of csv and tsv files are told apart."""

    delimiter: str | None = None
    """This one character separates fields; null means a comma in csv and a tab in tsv."""
    quote: str | None = None
    """This one character encloses fields, and "" says that there is none; null means `"` in csv and none in tsv."""
    escape: str | None = None
    """This one character stands before quotes, delimiters and itself, and before N alone for null, as the backslash in what
    Spark, PostgreSQL and MySQL write; null means that a quote inside quotes is written twice."""
    columns: tuple[str, ...] = ()
    """These are the columns of files without a header line; none means that each file's first line names them."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in "\r\n"):
            raise ConfigError(f"source.csv.delimiter is {self.delimiter!r}; give one character, or null")
        if self.quote is not None and (len(self.quote) > 1 or self.quote in ("\r", "\n")):
            raise ConfigError(f'source.csv.quote is {self.quote!r}; give one character, "" for none, or null')
        if self.escape is not None and (len(self.escape) != 1 or self.escape in "\r\n"):
            raise ConfigError(f"source.csv.escape is {self.escape!r}; give one character, or null")
        if self.escape is not None and self.escape == self.delimiter:
            raise ConfigError(f"source.csv.escape and source.csv.delimiter are both {self.escape!r}: change one")
        if self.quote and self.quote == self.delimiter:
            raise ConfigError(f"source.csv.quote and source.csv.delimiter are both {self.quote!r}: change one")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"source.csv.columns names a column twice: {list(self.columns)}")
