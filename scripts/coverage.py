"""Sums up an lcov file for core, without the lines of its tests: coverage.py LCOV PERCENT [FILE]"""

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core" / "src"
# Tests and what tests are made of.
LEFT_OUT = ("fuzzing/", "trace/tests.rs", "guard/cases.rs")


def own_lines(path: Path) -> int:
    """How many lines there are before the tests, which stand at the end of a file."""
    lines = path.read_text().splitlines()
    for at, line in enumerate(lines):
        if line == "#[cfg(test)]" and at + 1 < len(lines) and lines[at + 1].endswith("mod tests {"):
            return at
    return len(lines)


def main() -> int:
    lcov, least, only = Path(sys.argv[1]), float(sys.argv[2]), (sys.argv[3:] or [""])[0]
    counts: dict[Path, dict[int, int]] = defaultdict(dict)
    path = None
    for line in lcov.read_text().splitlines():
        if line.startswith("SF:"):
            path = Path(line[3:])
        elif line.startswith("DA:") and path is not None:
            number, count = line[3:].split(",")[:2]
            lines = counts[path]
            lines[int(number)] = max(lines.get(int(number), 0), int(count))
    rows = []
    for path, lines in counts.items():
        if CORE not in path.parents or str(path.relative_to(CORE)).startswith(LEFT_OUT):
            continue
        end = own_lines(path)
        own = {number: count for number, count in lines.items() if number <= end}
        missed = sorted(number for number, count in own.items() if count == 0)
        if only and path == (ROOT / only).resolve():
            text = path.read_text().splitlines()
            print("\n".join(f"{number:5} {text[number - 1]}" for number in missed))
            return 0
        if own:
            rows.append((len(own) - len(missed), len(own), str(path.relative_to(ROOT))))
    if only:
        print(f"{only}: nothing was counted of it; a file of core/src, by its path from the top", file=sys.stderr)
        return 2
    rows.sort(key=lambda row: row[0] / row[1])
    for ran, all_, name in rows:
        print(f"{100 * ran / all_:6.1f} %  {ran:5} of {all_:5} lines  {name}")
    ran, all_ = sum(row[0] for row in rows), sum(row[1] for row in rows)
    share = 100 * ran / all_ if all_ else 0.0
    print(f"{share:6.1f} %  {ran:5} of {all_:5} lines of core, without its tests")
    if share < least:
        print(f"that is under {least} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
