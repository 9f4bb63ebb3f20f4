"""Plumbing: rows of local files of every kind: (where, row); `where` names file and row in errors.

A row of a JSON-lines file is its line, as bytes, so that a bad one can be named, or skipped by the
reader (records.py).
Rows of other files are dicts. A cell of a .csv is a text; `from_text` makes it what is asked for.
"""
import csv
import gzip
import io
import json
import re
from pathlib import Path

from plumbing.runs import UserError, first_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")
READ = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
BOM = b"\xef\xbb\xbf"
csv.field_size_limit(2**31 - 1)


def local_files(name, path):
    """The files of a set's folder, or the one file. name: the set; "" for a file of records."""
    path, files = Path(path), [Path(path)]
    label = f"{name}: {path}" if name else str(path)
    if path.is_dir():
        if (path / "RMB_dataset").is_dir():  # RMB's checkout holds other JSON too
            path = path / "RMB_dataset"
        # Pitfall: ReaLMistake's archive also holds example.jsonl, rows that its paper prints;
        # beside the rows of `save_to_disk` lie their description and what `map` has cached.
        files = sorted(f for f in path.rglob("*") if f.name.endswith(SUFFIXES)
                       and (name, f.name) != ("realmistake", "example.jsonl")
                       and not re.match(r"dataset_\w+\.json|state\.json|cache-", f.name)
                       and not any(p.startswith(".") for p in f.relative_to(path).parts))
        inside = sorted({f.relative_to(path).parts[0] for f in files})
        if not name and any(f.parent != path or f.suffix != ".arrow" for f in files):
            raise UserError(f"{label} is a folder; give one of its files, or a folder of one "
                            f"`save_to_disk`; it holds {', '.join(inside[:5])}")
    if not files or not files[0].exists():
        raise UserError(f"{label} does not exist or holds no file ending in {READ}")
    return files


def file_rows(name, file):
    label = f"{name}, {file}" if name else str(file)
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{label}: cannot be read; give a file ending in {READ}")
    read = table_rows if file.suffix in (".parquet", ".arrow") else text_rows
    try:
        for place, row in read(file):
            if isinstance(row, dict):
                # Pitfall: a table has every column in every row, None where the file had nothing.
                row = {k: v for k, v in row.items() if v is not None or k == "rewards"}
            yield f"{label}, {place}", row
    except Exception as error:  # not JSON, not parquet, a torn archive: each library has its own
        raise UserError(f"{label}: cannot be read ({type(error).__name__}: {first_line(error)})"
                        ) from None


def table_rows(file):
    import pyarrow.ipc
    import pyarrow.parquet
    if file.suffix == ".parquet":
        table = pyarrow.parquet.ParquetFile(file).read()
    else:
        with pyarrow.memory_map(str(file)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    rows = (row for batch in table.to_batches(1000) for row in batch.to_pylist())
    yield from ((f"row {n}", row) for n, row in enumerate(rows))


def text_rows(file):
    data = file.read_bytes()
    if file.suffix == ".gz":
        data = gzip.decompress(data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Windows writes it
        data = data.decode("utf-16").encode()
    kind = Path(file.name.removesuffix(".gz")).suffix
    if kind == ".csv":
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        for n, row in enumerate(table):
            yield f"row {n}", {key: value or None for key, value in row.items() if key}
        return
    if kind == ".json":
        found = whole_json(data.decode("utf-8-sig"))
        if found is not None:
            yield from ((f"row {n}", row) for n, row in enumerate(found))
            return
    # Pitfall: splitlines() would also cut at a line separator inside a JSON string.
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.strip()
        while line.startswith(BOM):  # behind the first line where files were joined
            line = line.removeprefix(BOM)
        if line:
            yield f"line {number}", line


def whole_json(text):
    """The rows of a .json file that is one list or one object; None if it is JSON lines."""
    try:
        found = json.loads(text)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        return None
    if isinstance(found, dict) and found.keys() == {"data"} and isinstance(found["data"], list):
        found = found["data"]
    return found if isinstance(found, list) else [found]


def some(names, most=8):
    """The first of some names, quoted, for a message of one line."""
    shown = [repr(name)[:60] for name in names]
    return (", ".join(shown[:most]) or "no fields") + ", ..." * (len(shown) > most)


def parse_line(line, where):
    try:
        row = json.loads(line.decode("utf-8"))
        # half a surrogate pair is JSON, but no text that a file can hold
        json.dumps(row, ensure_ascii=False).encode("utf-8")
        return row
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({error}); mend the line or pass --skip_bad"
                        ) from None


def from_text(value, *kinds):
    """The JSON of one of the kinds that a text holds (a cell, a column of texts), or the value."""
    if isinstance(value, str):
        try:
            found = {"True": True, "False": False}.get(value)
            found = json.loads(value) if found is None else found
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, kinds) else value
    return value


def chat_in(value):
    """The messages that a text holds as JSON; [] for message lists in another notation, so that
    nobody reads them as text; anything else as it is."""
    found = from_text(value, list)
    chat = isinstance(found, list) and found and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in found)
    if not chat and isinstance(value, str) and re.match(r"\s*\[\s*\{\s*['\"](role|content)", value):
        return []
    return found if chat else value
