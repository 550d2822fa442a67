"""What the tests of the recipes have in common: the builds that there are, and a count of what holds."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What cross/build makes.
BUILDS = {line.split()[0] for line in (ROOT / "cross/targets").read_text().splitlines() if not line.startswith("#")}
passed = failed = 0


def must(what, got, want=True):
    global passed, failed
    if got == want:
        passed += 1
    else:
        failed += 1
        print(f"FAILED: {what}: {got!r} instead of {want!r}")


def over():
    """Prints the count; the exit code."""
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)
