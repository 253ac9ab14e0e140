"""The rooms of the package and the arrows between them are those of the table in CONTRIBUTING.md."""

import ast
import re
import sys
from collections import defaultdict

import pytest
from common import ROOT

COLUMNS = ("room", "what is in it", "imports of ours", "imports of others")


def table():
    """What each room may import, ours and others' in one set, by the table; rooms in its order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.partition("\n## Layout\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert tuple(rows[0]) == COLUMNS
    allowed = {}
    for rooms, _, ours, others in rows[2:]:
        for room in names(rooms):
            assert room not in allowed
            allowed[room] = names(ours) | names(others)
    return allowed


def names(cell):
    return set(re.findall(r"`([\w.]+)`", cell))


def room_of(module):
    """The room that a dotted name of ours belongs to, or the package of others."""
    first, _, rest = module.partition(".")
    if first != "selfdeblur":
        return first
    second = rest.partition(".")[0]
    return second if second and not second.startswith("__version") else "__init__"


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources():
    top = [*ROOT.glob("selfdeblur_*.py"), *(ROOT / "statistic").glob("*.py")]
    return [*top, *(ROOT / "selfdeblur").rglob("*.py"), *(ROOT / "networks").rglob("*.py")]


def imports():
    """What each room imports, wherever the import stands, with the lines: room -> imported -> places."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sources():
        own = room_of(module_of(path))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                if name.partition(".")[0] not in sys.stdlib_module_names and room_of(name) != own:
                    found[own][room_of(name)].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_every_import_is_in_the_table():
    allowed, found = table(), imports()
    for room, targets in found.items():
        for target, places in targets.items():
            assert target in allowed[room], f"{places[0]}: {room} may not import {target}, see CONTRIBUTING.md"


def test_the_table_names_what_there_is():
    rooms = {room_of(module_of(path)) for path in sources()}
    allowed, found = table(), imports()
    assert set(allowed) == rooms
    unused = {room: targets - set(found[room]) for room, targets in allowed.items()}
    assert not any(unused.values()), f"the table in CONTRIBUTING.md allows what nobody uses: {unused}"


def test_arrows_point_down():
    allowed = table()
    below = {room: set(list(allowed)[i + 1 :]) for i, room in enumerate(allowed)}
    for room, targets in allowed.items():
        # The version is told by the package itself.
        upwards = (targets & set(allowed)) - below[room] - {"__init__"}
        assert not upwards, f"{room} imports {upwards}, which stand above it"


def test_the_method_needs_torch_alone():
    allowed, seen, waiting = table(), set(), ["solver"]
    while waiting:
        room = waiting.pop()
        seen.add(room)
        waiting += [other for other in allowed.get(room, ()) if other not in seen]
    assert seen - set(allowed) == {"torch", "triton"}  # PyTorch for GPUs brings Triton, others do without
    assert "networks" in seen


@pytest.mark.parametrize(
    ("line", "expected"),
    [("import selfdeblur.api", ["api"]), ("from selfdeblur import __version__, errors", ["__init__", "errors"])],
)
def test_imports_are_seen(line, expected):
    assert [room_of(name) for name in imported(ast.parse(line).body[0])] == expected
