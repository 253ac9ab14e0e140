"""JSON records, and the sums of files that they hold."""

import csv
import hashlib
import json
from pathlib import Path

from selfdeblur.errors import UserError


def file_hash(path):
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_json(path):
    """The dictionary in a JSON file, or None where there is no such file.

    Raises
    ------
    UserError
        If the file holds anything else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file; remove it ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, not an object; remove it")
    return content


def read_failures(path):
    """The list of failures, reason by image name; empty where there is none, rows that are damaged left out."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = list(csv.DictReader(file))
    except (FileNotFoundError, csv.Error):
        return {}
    return {row["image"]: row["reason"] for row in rows if row.get("image") and row.get("reason")}
