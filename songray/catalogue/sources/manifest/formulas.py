"""Cells of CSV that a spreadsheet would execute as formulas.

They are written with an apostrophe before them, as OWASP advises, and read without it:
https://owasp.org/www-community/attacks/CSV_Injection

`unescape` inverts `escape`, also for text that has such an apostrophe itself, and leaves other text as it is.
"""

from __future__ import annotations

import re

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # spreadsheets take full-width signs too


def escape(cell: str) -> str:
    return f"'{cell}" if FORMULA.match(cell) else cell


def unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
