"""Object keys of the three buckets: made, parsed and refused here, and nowhere else. Pure.

The results bucket mirrors the key of the video, so that a plain ``sync`` of one folder gives a
person everything of that day::

    day1/a.mp4  ->  day1/a.mp4/video.json
                    day1/a.mp4/deeplabcut_2d-<id>/result.json

Keys that can't be mirrored safely (a ``..`` in them, no room for what is appended, a name that
posedrop uses itself) have their results under ``_keys/<file_id>`` instead; the records name the
video's real key.

A film that comes without a folder lies below ``uploads/<file_id>/``. Folders of people's own can
look like that (``uploads/openfieldsession/``), so the last characters of such an id check those
before them: :func:`new_file_id`. An older posedrop chose ids without a check; those are told from
folders by their records (``Storage.file_id``).

``_planned/<file_id>.json`` says for which bytes the video's rules were followed. It is apart from
the video's folder, so that whoever clears that away to save space does not have it all made again.

``_posedrop/`` is for all further records of posedrop's own: ``_posedrop/ingest/<file_id>/<etag>/``
has the attempts of an ingest; ``_posedrop/rules/<id>.json`` names a folder's rule that is wrong,
and says why; ``_posedrop/tuning/<model digest>/`` remembers how fast a model is;
``_posedrop/workers/<id>.json`` is a worker that lives; ``_posedrop/batches/<id>/`` is a batch: what
was asked for, the films that it has, how it ended; ``_posedrop/told/<id>.json`` says that somebody
is told of an end, ``_posedrop/digests/<id>.json`` of which runs one notice tells. Before it was, a
video's key could begin so; its results stay there.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

ID_LENGTH = 16
#: Of a file_id that POST /upload chooses so many characters are random; the others check them.
_STEM = 12
_ID = r"[a-z2-7]{16}"
_RUN = rf"[a-z][a-z0-9_]{{0,39}}-{_ID}"
_UPLOAD = re.compile(rf"^uploads/({_ID})/[^/]+$")
_RUN_FOLDER = re.compile(rf"^{_RUN}$")
_RUN_OBJECT = re.compile(
    rf"^(?P<run>(?P<video>.+)/(?P<analysis>[a-z][a-z0-9_]{{0,39}})-(?P<id>{_ID}))/(?P<name>.+)$"
)
_PENDING_REQUEST = re.compile(rf"^(?P<video>.+)/asked/(?P<id>{_ID})\.json$")
_PENDING_OUTCOME = re.compile(rf"^(?P<video>.+)/asked/(?P<id>{_ID})\.planned\.json$")
_NUMBER = re.compile(r"^([1-9][0-9]{0,5})\.json$")
_CONTENT = "_content"
#: An older posedrop kept records there.
_POSES = "_poses"
_PLANNED = "_planned"
_ODD_KEYS = "_keys"
_OWN = "_posedrop"
_INGEST = f"{_OWN}/ingest"
_INGEST_ATTEMPT = re.compile(rf"^{_INGEST}/{_ID}/[^/]+/[1-9][0-9]*\.json$")
_PLAIN_ETAG = re.compile(r"^[A-Za-z0-9-]{1,80}$")
_RULES = f"{_OWN}/rules"
_TUNING = f"{_OWN}/tuning"
#: Nothing lies below it: asked for what does, a store tells its time.
CLOCK = f"{_OWN}/clock/"
#: The folder, with its slash, of a record for each worker that lives.
WORKERS = f"{_OWN}/workers/"
_BATCHES = f"{_OWN}/batches"
_BATCH_OBJECT = re.compile(rf"^{_BATCHES}/({_ID})/(batch\.json|over\.json|films/[0-9]{{6}}\.json)$")
_BATCH_FILMS = re.compile(r"^films/([0-9]{6})\.json$")
#: The names of a batch's records below its folder: what was asked for, and how it ended.
BATCH_REQUEST = "batch.json"
BATCH_OVER = "over.json"
_RULE_OBJECT = re.compile(rf"^{_RULES}/({_ID})\.json$")

#: S3 allows 1,024 bytes a key; the longest name posedrop appends to a video's key is
#: ``/<40 characters>-<16>/poses_filtered.csv``.
MAX_MIRRORED_BYTES = 1024 - 96
#: File systems under a store (SeaweedFS, MinIO) allow 255 bytes between two slashes.
MAX_SEGMENT_BYTES = 255

VIDEO_RECORD = "video.json"
THUMBNAIL = "thumbnail.jpg"
REQUEST = "request.json"
RESULT = "result.json"
CANCEL = "cancel"
INFERENCE = "inference.json"
PREDICTIONS = "predictions.npz"
VIEWER = "viewer.bin"
FOLDER_RULES = "posedrop.json"
#: Rules are looked for in so many folders of a key, from the bucket on, and in the bucket itself.
RULES_DEPTH = 32
RUN_LOG = "run.log"
_ATTEMPTS = "attempts"
#: A worker's note that it is too old for the run.
NEEDS_NEWER = f"{_ATTEMPTS}/needs-newer.json"
#: A worker's note that the predictions are gone of which a run was to be made.
NEEDS_NETWORK = f"{_ATTEMPTS}/needs-network.json"
_PARTS = "parts"
_DERIVED = "derived"
#: What ``worker.video.draw`` leaves.
DRAWN = ("pose.mp4", "trajectory.png", "likelihood.png")
#: Names in a run's folder that have a meaning, in lower case: no analysis leaves a file of one.
OWN_NAMES = frozenset(
    {
        VIDEO_RECORD,
        THUMBNAIL,
        REQUEST,
        RESULT,
        CANCEL,
        INFERENCE,
        PREDICTIONS,
        FOLDER_RULES,
        RUN_LOG,
        *DRAWN,
        "asked",
        _ATTEMPTS,
        _PARTS,
        _DERIVED,
    }
)


def make_id(*parts: str) -> str:
    """Return 16 base32 characters of SHA-256 over ``parts``; the same parts give the same id."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:ID_LENGTH]


def is_id(text: str) -> bool:
    """Tell whether ``text`` has the form of a file_id or an analysis_id."""
    return re.fullmatch(_ID, text) is not None


def upload_key(file_id: str, filename: str) -> str:
    """Return the key that ``POST /upload`` chooses: ``uploads/<file_id>/<file name>``."""
    return f"uploads/{file_id}/{safe_filename(filename)}"


def safe_filename(filename: str, most: int = 200) -> str:
    """Return the last part of ``filename``, without control characters, at most so many bytes long.

    Both kinds of slash separate, because Windows' browsers send whole paths.
    """
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(c for c in name if c.isprintable()).strip()
    if name in {"", ".", ".."}:
        name = "video"
    stem, dot, suffix = name.rpartition(".")
    suffix = dot + suffix if stem and len(suffix) <= 10 else ""
    stem = name.removesuffix(suffix) if suffix else name
    room = most - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


def new_file_id(unique: str) -> str:
    """Return the file_id of an upload: 12 characters of ``unique``, and four that check them.

    The first of the four is a digit: no name of letters alone is such an id, and of other names
    one in a million.

    Args:
        unique: of the characters of ids, random; what follows the first 12 is not used.
    """
    stem = unique[:_STEM]
    check = make_id("file_id", stem)
    return f"{stem}{2 + ord(check[3]) % 6}{check[:3]}"


def file_id_of(bucket: str, key: str) -> str:
    """Return the file_id of an object: the one in its upload key, else one made of its name.

    ``Storage.file_id`` knows those, too, that an older posedrop chose.
    """
    upload = _UPLOAD.match(key)
    if upload is not None and new_file_id(upload[1]) == upload[1]:
        return upload[1]
    return make_id(bucket, key)


def former_file_id(key: str) -> str | None:
    """Return the file_id that an older posedrop gave a key, None if that is today's."""
    upload = _UPLOAD.match(key)
    return None if upload is None or new_file_id(upload[1]) == upload[1] else upload[1]


def may_be_id_of(file_id: str, bucket: str, key: str) -> bool:
    """Tell whether an object has, or was given by an older posedrop, this file_id."""
    return file_id in {file_id_of(bucket, key), former_file_id(key)}


def former_video_record(key: str, file_id: str) -> str:
    """Return the key of the video.json of a film to which an older posedrop gave ``file_id``."""
    return video_record(key if _mirrors_plainly(key) else f"{_ODD_KEYS}/{file_id}")


def file_id_in_prefix(prefix: str) -> str | None:
    """Return the file_id that a folder of the results bucket is called by; None: by a key."""
    odd, _, file_id = prefix.partition("/")
    return file_id if odd == _ODD_KEYS else None


def video_prefix(bucket: str, key: str) -> str:
    """Return the folder of the results bucket, without a slash at its end, for a video's key."""
    return key if _mirrors_plainly(key) else f"{_ODD_KEYS}/{file_id_of(bucket, key)}"


def tunings(digest: str) -> str:
    """Return the folder, with its slash, of what is remembered of a model's speed."""
    return f"{_TUNING}/{digest}/"


def worker(worker_id: str) -> str:
    """Return the key of the record of a worker that lives."""
    return f"{WORKERS}{worker_id}.json"


def batch(batch_id: str, name: str = BATCH_REQUEST) -> str:
    """Return the key of a record of a batch, by its name: what was asked for, how it ended."""
    return f"{_BATCHES}/{batch_id}/{name}"


def batch_films(batch_id: str, number: int) -> str:
    """Return the key of the record of some films of a batch, by its number (from 1)."""
    return batch(batch_id, f"films/{number:06}.json")


def batch_films_number(name: str) -> int | None:
    """Return the number in the name of such a record, None for any other."""
    match = _BATCH_FILMS.match(name)
    return int(match[1]) if match else None


def told(told_id: str) -> str:
    """Return the key of the record that somebody is told of an end; it names no film."""
    return f"{_OWN}/told/{told_id}.json"


def digest(digest_id: str) -> str:
    """Return the key of the record of the runs of which one notice tells."""
    return f"{_OWN}/digests/{digest_id}.json"


def is_of_notice(key: str) -> bool:
    """Tell whether an object of the results bucket says that somebody is told of something."""
    return key.startswith((f"{_OWN}/told/", f"{_OWN}/digests/"))


def group_of(key: str) -> str:
    """Return whose video a key is, where several share the gpu queue: its first folder.

    All of ``uploads/`` is one group, and so is what lies in no folder (the empty name).
    """
    return key.partition("/")[0] if "/" in key else ""


def former_prefix(key: str) -> str | None:
    """Return where the results of a video may lie since before :data:`_OWN` was a reserved name."""
    if not key.startswith(f"{_OWN}/"):
        return None
    return key if _mirrors_plainly(key, frozenset()) else None


_RESERVED = frozenset({_OWN})


def _mirrors_plainly(key: str, reserved: frozenset[str] = _RESERVED) -> bool:
    segments = key.split("/")
    return (
        len(key.encode()) <= MAX_MIRRORED_BYTES
        and segments[0] not in {_ODD_KEYS, _CONTENT, _POSES, _PLANNED} | reserved
        and all(_plain_segment(segment) for segment in segments)
    )


def _plain_segment(segment: str) -> bool:
    return (
        segment not in {"", ".", "..", "asked", "attempts", VIDEO_RECORD, THUMBNAIL}
        and len(segment.encode()) <= MAX_SEGMENT_BYTES
        and segment.isprintable()
        and "\\" not in segment
        and _RUN_FOLDER.match(segment) is None
    )


def video_record(prefix: str) -> str:
    """Return the key of a video's video.json."""
    return f"{prefix}/{VIDEO_RECORD}"


def thumbnail(prefix: str) -> str:
    """Return the key of a video's thumbnail.jpg."""
    return f"{prefix}/{THUMBNAIL}"


def pending_request(prefix: str, pending_id: str) -> str:
    """Return the key of a request that waits until its video's content is known."""
    return f"{prefix}/asked/{pending_id}.json"


def pending_outcome(prefix: str, pending_id: str) -> str:
    """Return the key of the record that says what became of a pending request.

    It sorts after the request, so that a removal cut short leaves no request that seems new.
    """
    return f"{prefix}/asked/{pending_id}.planned.json"


def planned(file_id: str) -> str:
    """Return the key of the record that a video's rules were followed."""
    return f"{_PLANNED}/{file_id}.json"


def wrong_rule(key: str) -> str:
    """Return the key of the record that says what is wrong with a rule, by the rule's own key."""
    return f"{_RULES}/{make_id('rule', key)}.json"


def run_prefix(prefix: str, analysis: str, analysis_id: str) -> str:
    """Return the folder of one run of an analysis on a video."""
    return f"{prefix}/{analysis}-{analysis_id}"


@dataclass(frozen=True)
class Run:
    """The folder of one run in the results bucket: the keys of all that lies in it.

    ``prefix`` is the folder without a slash at its end, as rows, messages and records have it.
    """

    prefix: str

    @property
    def folder(self) -> str:
        """The folder with its slash: what to list for all objects of the run."""
        return f"{self.prefix}/"

    @property
    def request(self) -> str:
        """The key of request.json, first of all objects of the run."""
        return self.key(REQUEST)

    @property
    def result(self) -> str:
        """The key of result.json, last of all objects of the run."""
        return self.key(RESULT)

    @property
    def inference(self) -> str:
        """The key of inference.json: the poses are there, the labelled video is not yet."""
        return self.key(INFERENCE)

    @property
    def predictions(self) -> str:
        """The key of predictions.npz: what the network found, before the tables were made."""
        return self.key(PREDICTIONS)

    @property
    def cancel(self) -> str:
        """The key of an empty object: somebody asked that the run ends."""
        return self.key(CANCEL)

    @property
    def attempts(self) -> str:
        """The folder, without a slash, of the claims of the run's attempts."""
        return self.key(_ATTEMPTS)

    def attempt(self, number: int) -> str:
        """Return the key of the claim of attempt ``number`` (from 1)."""
        return f"{self.attempts}/{number}.json"

    @property
    def needs_newer(self) -> str:
        """The key of a worker's note that it is too old for the run."""
        return self.key(NEEDS_NEWER)

    @property
    def needs_network(self) -> str:
        """The key of a worker's note that there are no predictions to make the run of."""
        return self.key(NEEDS_NETWORK)

    @property
    def parts(self) -> str:
        """The folder, with its slash, of the run's checkpoints: gone when the run ends."""
        return self.key(f"{_PARTS}/")

    @property
    def derived(self) -> str:
        """The folder, with its slash, of what is made of the poses when it is asked for."""
        return self.key(f"{_DERIVED}/")

    def derived_attempts(self, what: str) -> str:
        """Return the folder, without a slash, of the attempts to make ``what`` of the poses."""
        return f"{self.derived}{what}"

    def derived_file(self, name: str) -> str:
        """Return the key of a file that is made of the poses, by its name."""
        return f"{self.derived}{name}"

    def derived_request(self, what: str) -> str:
        """Return the key of the record that ``what`` was asked for; it sorts before the next."""
        return f"{self.derived_attempts(what)}/asked.json"

    def derived_record(self, what: str) -> str:
        """Return the key of the record of what was made: written once, and last."""
        return f"{self.derived_attempts(what)}/made.json"

    def hand_back(self, number: int) -> str:
        """Return the key of an empty object: attempt ``number`` shall let another group go first.

        It goes with the checkpoints, which a run has no more when it ends.
        """
        return f"{self.parts}{number}.hand-back"

    def key(self, name: str) -> str:
        """Return the key of a name in the run's folder, such as an artefact's place."""
        return f"{self.prefix}/{name}"

    def name(self, key: str) -> str:
        """Return the name in the run's folder of a key: what :meth:`key` was given."""
        return key.removeprefix(self.folder)


#: Two hyphens: with one, the folder would pass for a run of an analysis.
_COMPARISON = re.compile(rf"^compare-with-({_ID})$")


def comparison(analysis_id: str) -> str:
    """Return what is asked of a run's poses, to have them compared with those of another run."""
    return f"compare-with-{analysis_id}"


def compared_with(what: str) -> str | None:
    """Return the run that :func:`comparison` named, None: something else is asked for."""
    match = _COMPARISON.match(what)
    return match[1] if match else None


_DERIVED_RECORD = re.compile(rf"^{_DERIVED}/([a-z0-9-]{{1,40}})/(asked|made)\.json$")


def parse_derived(name: str) -> tuple[str, bool] | None:
    """Return what a record of ``derived/`` is about, by its name in the run's folder.

    Returns:
        What was asked for, and whether this says that it was made; None for any other name.
    """
    match = _DERIVED_RECORD.match(name)
    return (match[1], match[2] == "made") if match else None


def attempt_number(name: str) -> int | None:
    """Return N of ``attempts/N.json``, None for any other name in a run's folder."""
    return number_of(name, _ATTEMPTS)


def number_of(key: str, folder: str) -> int | None:
    """Return N of ``<folder>/N.json``, None for any other key."""
    match = _NUMBER.match(key.removeprefix(f"{folder}/")) if key.startswith(folder) else None
    return int(match.group(1)) if match else None


def ingests(file_id: str) -> str:
    """Return the folder of all attempts to ingest a file, whatever bytes it had."""
    return f"{_INGEST}/{file_id}"


def ingest(file_id: str, etag: str) -> str:
    """Return the folder of the attempts to ingest these bytes of a file: ``1.json``, ``2.json``."""
    return f"{ingests(file_id)}/{etag if _PLAIN_ETAG.match(etag) else make_id('etag', etag)}"


def content(sha256: str) -> str:
    """Return the key that names the first video with this content (hexadecimal SHA-256)."""
    return f"{_CONTENT}/{sha256}.json"


class RunObject(NamedTuple):
    """An object in a run's folder of the results bucket."""

    run: str
    video: str
    analysis: str
    analysis_id: str
    name: str


class VideoObject(NamedTuple):
    """An object that stands for a video itself in the results bucket: its record or thumbnail."""

    video: str
    name: str


class PendingRequestObject(NamedTuple):
    """A request that waits for its video."""

    video: str
    pending_id: str


class PendingOutcomeObject(NamedTuple):
    """What became of a request that waited for its video."""

    video: str
    pending_id: str


class RuleObject(NamedTuple):
    """The record of what is wrong with a folder's rule."""

    rule_id: str


class BatchObject(NamedTuple):
    """A record of a batch: what was asked for, some of its films, how it ended."""

    batch_id: str
    name: str


ResultObject = (
    RunObject | VideoObject | PendingRequestObject | PendingOutcomeObject | RuleObject | BatchObject
)


def parse_result_key(key: str) -> ResultObject | None:
    """Return what an object of the results bucket is, None for what posedrop did not write."""
    if _INGEST_ATTEMPT.match(key):  # whatever a store's ETags look like
        return None
    if match := _RULE_OBJECT.match(key):
        return RuleObject(match[1])
    if match := _BATCH_OBJECT.match(key):
        return BatchObject(match[1], match[2])
    if match := _RUN_OBJECT.match(key):
        return RunObject(
            match["run"], match["video"], match["analysis"], match["id"], match["name"]
        )
    if match := _PENDING_REQUEST.match(key):
        return PendingRequestObject(match["video"], match["id"])
    if match := _PENDING_OUTCOME.match(key):
        return PendingOutcomeObject(match["video"], match["id"])
    video, _, name = key.rpartition("/")
    if video and name in {VIDEO_RECORD, THUMBNAIL} and not key.startswith(f"{_CONTENT}/"):
        return VideoObject(video, name)
    return None


def is_folder_mark(key: str, size: int | None) -> bool:
    """Tell whether an object only says that there is a folder, as consoles and mounts put them.

    A film may have a slash at its key's end as well: ``upload_file("a.mp4", "videos", "day1/")``.

    Args:
        key: of the videos bucket.
        size: in bytes; None: it is not known.
    """
    return key.endswith("/") and size == 0


def is_folder_rule(key: str) -> bool:
    """Tell whether an object of the videos bucket is a rule for its folder."""
    return key.rsplit("/", 1)[-1] == FOLDER_RULES


def is_upload(key: str, file_id: str) -> bool:
    """Tell whether ``POST /upload`` chose a film's key: ``uploads/<file_id>/<file name>``."""
    upload = _UPLOAD.match(key)
    return upload is not None and upload[1] == file_id


def folder_rules(key: str, deepest: int | None = RULES_DEPTH) -> list[str]:
    """Return the keys of the posedrop.json files that can rule a video, the nearest first.

    Each is looked for in the store while other films wait, so those of the upper ``deepest``
    folders count, and a film further down goes by them; None: those of all folders.
    """
    folders = key.split("/")[:-1]
    rules = (
        "/".join([*folders[:depth], FOLDER_RULES])
        for depth in range(len(folders[:deepest]), -1, -1)
    )
    # No store has a longer one, and asked for it some answer that as an error.
    return [rule for rule in rules if len(rule.encode()) <= 1024]


def user_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what a video's own metadata asks for: ``analysis`` and ``args``, lower-case names."""
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: lowered[name] for name in ("analysis", "args") if name in lowered}
