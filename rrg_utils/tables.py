"""Tables of scores that take long to make, kept in `results/tables`: a notebook need not train every row again.

A notebook that trains all rows keeps them; one that trains a few takes the others from there, and says so: `completed`
does either.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rrg_utils import claims
from rrg_utils.errors import RRGError
from rrg_utils.files import write_atomically

Row = Mapping[str, float | None]


def completed(name: str, profile: str, seed: int, rows: Mapping[str, Row], whole: bool) -> dict[str, Row]:
    """All rows of a table for one training seed, in its order. `rows` are those that were made here.

    If they are all there is (`whole`), they are kept for other runs. Else what is missing comes from `results/`, where
    there is any; such rows rest on the language model of the run that made them.
    """
    if whole:
        keep(name, profile, seed, rows)
        return dict(rows)
    return {**kept(name, profile, seed), **rows}


def keep(name: str, profile: str, seed: int, rows: Mapping[str, Row]) -> Path:
    """Write the rows of a table, {row: {score: value}}, for one training seed; where, see `claims.destination`."""
    path = _path(claims.destination(), name, profile, seed)
    rounded = {
        row: {score: None if value is None else round(float(value), 5) for score, value in found.items()}
        for row, found in rows.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, json.dumps(rounded, indent=1) + "\n")


def kept(name: str, profile: str, seed: int) -> dict[str, dict[str, float | None]]:
    """The rows kept for a training seed; none where there is no such table. RRGError for a damaged file."""
    path = _path(claims.RESULTS, name, profile, seed)
    try:
        rows = json.loads(path.read_text())
        if not all(isinstance(row, dict) for row in rows.values()):
            raise ValueError("a row is not a mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise RRGError(f"results/tables/{name}/{path.name} is damaged ({error}): restore or delete it") from None
    return rows


def _path(results: Path, name: str, profile: str, seed: int) -> Path:
    return results / "tables" / name / f"{profile}-seed{seed}.json"
