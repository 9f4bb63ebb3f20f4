"""The exercises named in their README, with their points, are those of the folder."""
import re

from conftest import ROOT


def test_exercises_and_their_points_are_those_of_the_folder():
    text = (ROOT / "exercises" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `exercises/(\w+\.py)` \|.*\| (\d+) \|$", text, re.M)
    folder = sorted(path.name for path in (ROOT / "exercises").glob("[0-9][0-9]_*.py"))
    assert [name for name, _ in rows] == folder
    for name, points in rows:
        source = (ROOT / "exercises" / name).read_text(encoding="utf-8")
        assert f"{points} points" in source.split('"""')[1], name
    assert f"{sum(int(points) for _, points in rows)} points" in text
