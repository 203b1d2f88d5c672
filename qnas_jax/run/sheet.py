"""Tables of comma-separated cells, as programs and spreadsheets write them.

A spreadsheet puts a byte-order mark first, ends lines with CR LF, quotes cells, leaves spaces
around them, adds empty columns on the right and blank lines at the end. None of that changes what
a table says, so all of it is read. What can be read in two ways is refused: other separators,
other encodings.
"""

import csv
import io

Lines = list[tuple[int, list[str]]]  # number and cells of each
SAVE_AS = "save it as CSV in UTF-8, with commas between cells and decimal points"


def parse(content: bytes) -> Lines:
    """Number and cells of every line that is not blank, the header first.

    Raises:
      ValueError: It is no such table; the message begins with the line.
    """
    lines = io.StringIO(_text(content).removeprefix("\ufeff"), newline="")
    reader = csv.reader(lines, skipinitialspace=True)
    found: Lines = []
    width, number = 0, 1
    try:
        for raw in reader:
            _check(number, raw)
            cells = [cell.strip() for cell in raw]
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if any(cells):
                found.append((number, cells))
                width = len(found[0][1])
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {number}: {error}; {SAVE_AS}") from None
    return found


def _text(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        place = error.start
    else:
        place = content.find(b"\0")  # UTF-16 without a mark
        if place < 0:
            return text
    line = content.count(b"\n", 0, place) + 1
    raise ValueError(f"line {line}: is no text in UTF-8; {SAVE_AS}")


def _check(line: int, cells: list[str]) -> None:
    for separator in (";", "\t"):
        if cells and separator in cells[0].strip():
            raise ValueError(f"line {line}: has {separator!r} between cells; {SAVE_AS}")
    if any("\n" in cell or "\r" in cell for cell in cells):
        raise ValueError(f"line {line}: has a cell that goes over several lines; close its quotes")
