"""Compare films by the hundred with OpenCV's reading of them.

    python -m tests.faults.films --examples 2000

Says how many were compared, and shows the smallest that differs. Colours that take seconds each to
be mapped are compared once.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import av.error
from hypothesis import HealthCheck, assume, given, settings

from tests.support import films, videos
from tests.support.films import Film


def main() -> None:
    """Run it; ends with an error where a film differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1000)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        for name, how in videos.MAPPED.items():
            films.agree(videos.coloured(Path(folder) / "film", *how))  # type: ignore[arg-type]
            print(f"{name}: the same")
    told: Counter[str] = Counter()

    @settings(
        max_examples=arguments.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(film=films.films())
    def compare(film: Film) -> None:
        with TemporaryDirectory() as folder:
            try:
                path = films.make(Path(folder) / "film", film)
            except (av.error.FFmpegError, OverflowError):
                told["not to be made"] += 1
                assume(False)
            assume(films.is_read(path))
            told["frames"] += films.check(path, film).end
            told["films"] += 1
            for value in (film.codec, film.container, film.change, film.shape):
                told[value] += 1

    compare()
    print(", ".join(f"{name}: {count}" for name, count in told.most_common()))


if __name__ == "__main__":
    main()
