"""The HTTP API, from the caller's side: for the command line, the demo and people's own scripts."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field

from posedrop import layout
from posedrop.errors import PosedropError, StorageError
from posedrop.records import Progress, RunError

T = TypeVar("T", bound="Answer")
OnBytes = Callable[[int], None]

FINAL = frozenset({"succeeded", "partial", "failed", "cancelled"})
_CHUNK = 1 << 20
_TRIES = 5
_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class UnreachableError(PosedropError):
    """Nobody answers where the API should be."""

    code = "unreachable"


class Answer(BaseModel):
    """An answer of the API; what a newer server adds is kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Ticket(Answer):
    """Leave to put one video."""

    file_id: str
    bucket: str
    key: str
    upload: dict[str, Any]


class Refusal(Answer):
    """Why a video will not be analysed."""

    reason: str
    message: str | None = None


class RunName(Answer):
    """A run, as a file lists it."""

    analysis_id: str
    analysis: str
    status: str


class File(Answer):
    """A video, as the server knows it."""

    file_id: str
    bucket: str
    key: str
    filename: str
    state: str
    size: int | None = None
    sha256: str | None = None
    probe: dict[str, Any] | None = None
    duplicate_of: str | None = None
    refusal: Refusal | None = None
    analyses: list[RunName] = Field(default_factory=list)
    created_at: str


class Started(Answer):
    """An analysis that was asked for."""

    analysis_id: str
    file_id: str
    status: str


class ResultFile(Answer):
    """One file of a result."""

    name: str
    url: str
    size: int
    sha256: str
    content_type: str


class Run(Answer):
    """A run: how far it is, or what it made."""

    analysis_id: str
    file_id: str
    analysis: str
    status: str
    progress: Progress | None = None
    position: int | None = None
    result: dict[str, Any] | None = None
    video_file: str | None = None
    files: list[ResultFile] = Field(default_factory=list)
    error: RunError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in FINAL


class RunRow(Answer):
    """A run in a list."""

    analysis_id: str
    file_id: str
    key: str
    analysis: str
    status: str
    created_at: str
    error: RunError | None = None


class Client:
    """The API at one URL; threads may share it."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        multipart_bytes: int = 64 * 2**20,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: of the API.
            token: its API token, if it asks for one.
            multipart_bytes: files larger than this go up in parts.
            transport: how requests travel; a test puts its own here.
        """
        self.url = url.rstrip("/")
        self._multipart_bytes = multipart_bytes
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(60.0, connect=5.0)
        self._api = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout, transport=transport
        )
        # Presigned URLs are for whoever has them; the token is the API's alone.
        self._store = httpx.Client(timeout=timeout, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._api.close()
        self._store.close()

    # -- videos ----------------------------------------------------------------------------------

    def upload(
        self,
        path: Path,
        *,
        analysis: str | None = None,
        args: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Ticket:
        """Put a video into the bucket; the analysis, if any, starts once it is there.

        Args:
            path: of the video.
            analysis: by name, as :meth:`analysis_types` lists them.
            args: of the analysis.
            on_bytes: called with the number of bytes that went up since the last call; negative
                when some have to go up again.

        Raises:
            UnreachableError: the API does not answer.
            PosedropError: the API or the store refused, with its reason.
        """
        size = path.stat().st_size
        in_parts = size > self._multipart_bytes
        body: dict[str, Any] = {
            "filename": path.name,
            "size": size,
            "content_type": mimetypes.guess_type(path.name)[0],
            "analysis": analysis,
            "args": dict(args or {}),
            "multipart": in_parts,
        }
        if not in_parts:
            body["sha256"] = sha256_of(path)
        ticket = self._json(Ticket, "POST", "/upload", json=body)
        report = on_bytes or (lambda _: None)
        if in_parts:
            self._put_parts(path, size, ticket, report)
        else:
            self._put_whole(path, size, ticket, report)
        return ticket

    def _put_whole(self, path: Path, size: int, ticket: Ticket, on_bytes: OnBytes) -> None:
        headers = {**ticket.upload["headers"], "Content-Length": str(size)}
        for attempt in range(1, _TRIES + 1):
            body = _FileSlice(path, 0, size, on_bytes)
            answer = self._try_put(ticket.upload["url"], body, headers)
            if answer is not None and answer.is_success:
                return
            if answer is not None and answer.status_code == 412 and attempt > 1:
                return  # the key is ours alone: an earlier try had arrived, its answer had not
            body.take_back()
            if answer is not None and answer.status_code not in _RETRY_STATUSES:
                raise _store_refused(path.name, answer)
            _pause(attempt)
        raise StorageError(f"{path.name} did not go up in {_TRIES} tries; try again later")

    def _put_parts(self, path: Path, size: int, ticket: Ticket, on_bytes: OnBytes) -> None:
        part_bytes: int = ticket.upload["part_bytes"]
        etags = []
        try:
            for number, url in enumerate(ticket.upload["parts"]):
                start = number * part_bytes
                length = min(part_bytes, size - start)
                etags.append(self._put_part(path, start, length, url, on_bytes))
            self._complete(path, ticket, etags)
        except BaseException:
            # Parts that nobody will complete would lie in the store unseen.
            self._abort(ticket)
            raise

    def _put_part(self, path: Path, start: int, length: int, url: str, on_bytes: OnBytes) -> str:
        for attempt in range(1, _TRIES + 1):
            body = _FileSlice(path, start, length, on_bytes)
            answer = self._try_put(url, body, {"Content-Length": str(length)})
            if answer is not None and answer.is_success:
                return answer.headers["ETag"]
            body.take_back()
            if answer is not None and answer.status_code not in _RETRY_STATUSES:
                raise _store_refused(path.name, answer)
            _pause(attempt)
        raise StorageError(f"a part of {path.name} did not go up in {_TRIES} tries")

    def _try_put(
        self, url: str, body: _FileSlice, headers: Mapping[str, str]
    ) -> httpx.Response | None:
        try:
            return self._store.put(url, content=iter(body), headers=headers)
        except httpx.TransportError:
            return None

    def _complete(self, path: Path, ticket: Ticket, etags: Sequence[str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        try:
            answer = self._store.post(
                ticket.upload["complete"], content=body, timeout=httpx.Timeout(300.0)
            )
        except httpx.TransportError as error:
            raise StorageError(f"{path.name} could not be completed: {error}") from error
        # S3 may say 200 at once and what went wrong after it.
        if not answer.is_success or b"<Error>" in answer.content:
            raise _store_refused(path.name, answer)

    def _abort(self, ticket: Ticket) -> None:
        try:
            self._store.delete(ticket.upload["abort"])
        except httpx.TransportError:
            return  # the store forgets unfinished uploads by itself after a while

    def file(self, file_id: str) -> File:
        """Return what is known of a video."""
        return self._json(File, "GET", f"/upload/{file_id}")

    def file_id_of(self, text: str) -> str:
        """Return the file_id of a video that a person named by its id or by its key.

        Raises:
            PosedropError: there is none.
        """
        if layout.is_id(text):
            return text
        for file in self.files(prefix=text):
            if file.key == text:
                return file.file_id
        raise PosedropError(f"there is no video {text!r}; `posedrop ls` lists them")

    def files(
        self,
        query: str | None = None,
        *,
        state: str | None = None,
        prefix: str | None = None,
    ) -> Iterator[File]:
        """Yield the videos, newest first, page by page."""
        return self._pages(File, "/files", q=query, state=state, prefix=prefix)

    def delete_file(self, file_id: str) -> None:
        """Remove a video and all its results."""
        self._request("DELETE", f"/upload/{file_id}")

    # -- analyses --------------------------------------------------------------------------------

    def analyse(
        self,
        file_id: str,
        analysis: str,
        args: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
    ) -> Started:
        """Ask for an analysis; the same one on the same content is answered with what exists."""
        body = {"file_id": file_id, "analysis": analysis, "args": dict(args or {}), "force": force}
        return self._json(Started, "POST", "/analyse", json=body)

    def run(self, analysis_id: str) -> Run:
        """Return how far a run is, or what it made."""
        return self._json(Run, "GET", f"/results/{analysis_id}")

    def wait(
        self,
        analysis_id: str,
        *,
        on_progress: Callable[[Run], None] | None = None,
        seconds: float = float("inf"),
    ) -> Run:
        """Return a run once it is over.

        Raises:
            PosedropError: it was not over after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while True:
            run = self.run(analysis_id)
            if on_progress is not None:
                on_progress(run)
            if run.over:
                return run
            if time.monotonic() > deadline:
                raise PosedropError(f"{analysis_id} was not over after {seconds:.0f} s")
            time.sleep(0.5)

    def wait_for_file(self, file_id: str, *, seconds: float = float("inf")) -> File:
        """Return a video once it was looked at: ready or refused.

        Raises:
            PosedropError: that took longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while True:
            file = self.file(file_id)
            if file.state in {"ready", "refused"}:
                return file
            if time.monotonic() > deadline:
                raise PosedropError(f"{file_id} was not looked at within {seconds:.0f} s")
            time.sleep(0.5)

    def runs(
        self,
        query: str | None = None,
        *,
        state: str | None = None,
        file_id: str | None = None,
    ) -> Iterator[RunRow]:
        """Yield the runs, newest first, page by page."""
        return self._pages(RunRow, "/analyses", q=query, state=state, file_id=file_id)

    def cancel(self, analysis_id: str) -> str:
        """Stop a run, or delete the results of one that is over; return what happened."""
        answer = self._request("DELETE", f"/analyse/{analysis_id}")
        return "deleted" if answer.status_code == 204 else str(answer.json()["status"])

    def analysis_types(self) -> list[dict[str, Any]]:
        """Return what can be asked, with the JSON Schema of its args."""
        items: list[dict[str, Any]] = self._request("GET", "/analysis-types").json()["items"]
        return items

    def models(self) -> list[dict[str, Any]]:
        """Return the models of the models bucket."""
        items: list[dict[str, Any]] = self._request("GET", "/models").json()["items"]
        return items

    def reconcile(self) -> dict[str, int]:
        """Compare buckets, index and queue now; return what was mended."""
        counts: dict[str, int] = self._request("POST", "/reconcile", timeout=None).json()
        return counts

    def reindex(self) -> dict[str, int]:
        """Make the index anew from the buckets; return what was found."""
        counts: dict[str, int] = self._request("POST", "/reindex", timeout=None).json()
        return counts

    # -- downloads -------------------------------------------------------------------------------

    def download(
        self,
        run: Run,
        folder: Path,
        *,
        on_file: Callable[[ResultFile], None] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> list[Path]:
        """Fetch all files of a run and its result.json; what is there and whole stays.

        An interrupted download goes on where it was, and a file has its name only once its hash is
        the one in result.json.

        Raises:
            StorageError: a file can't be had whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for file in run.files:
            path = folder / layout.safe_filename(file.name)
            if on_file is not None:
                on_file(file)
            self._download_file(file, path, on_bytes or (lambda _: None))
            paths.append(path)
        path = folder / layout.RESULT
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(json.dumps(run.result, indent=1) + "\n")
        partial.replace(path)
        return [*paths, path]

    def _download_file(self, file: ResultFile, path: Path, on_bytes: OnBytes) -> None:
        if path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256:
            on_bytes(file.size)
            return
        partial = path.with_name(f"{path.name}.part")
        for attempt in range(1, _TRIES + 1):
            try:
                self._continue(file, partial, on_bytes)
            except httpx.TransportError:
                _pause(attempt)
                continue
            if sha256_of(partial) == file.sha256:
                partial.replace(path)
                return
            # The beginning was another file's (results deleted and made anew): start over.
            on_bytes(-partial.stat().st_size)
            partial.unlink()
        raise StorageError(f"{file.name} did not come whole in {_TRIES} tries; try again later")

    def _continue(self, file: ResultFile, partial: Path, on_bytes: OnBytes) -> None:
        have = partial.stat().st_size if partial.is_file() else 0
        if have >= file.size > 0:
            return
        url = self._location(file.url)
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self._store.stream("GET", url, headers=headers) as answer:
            if not answer.is_success:
                answer.read()
                raise _store_refused(file.name, answer)
            # A store that does not know ranges sends all of it.
            mode = "ab" if answer.status_code == 206 else "wb"
            on_bytes(have if mode == "ab" else 0)
            with partial.open(mode) as target:
                for chunk in answer.iter_bytes(_CHUNK):
                    target.write(chunk)
                    on_bytes(len(chunk))

    def _location(self, url: str) -> str:
        """Return the presigned URL that one of the API's redirects to."""
        answer = self._request("GET", url)
        return answer.headers.get("Location") or str(answer.url)

    # -- requests --------------------------------------------------------------------------------

    def _json(self, kind: type[T], method: str, path: str, **more: Any) -> T:
        return kind.model_validate_json(self._request(method, path, **more).content)

    def _pages(self, kind: type[T], path: str, **filters: str | None) -> Iterator[T]:
        params = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._request("GET", path, params=params).json()
            yield from map(kind.model_validate, page["items"])
            if page["next"] is None:
                return
            params["cursor"] = page["next"]

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = self._api.request(method, path, **more)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"nothing answers at {self.url} ({error}); start it with `posedrop up`, "
                "or say where it is with --url"
            ) from error
        if answer.status_code >= 400:
            raise _refused(answer)
        return answer


class _FileSlice:
    """A part of a file as a request's body; it counts what was sent."""

    def __init__(self, path: Path, start: int, length: int, on_bytes: OnBytes) -> None:
        self._path = path
        self._start = start
        self._length = length
        self._on_bytes = on_bytes
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._start)
            while self._sent < self._length:
                chunk = file.read(min(_CHUNK, self._length - self._sent))
                if not chunk:
                    raise StorageError(f"{self._path} became shorter while it was sent")
                yield chunk
                self._sent += len(chunk)
                self._on_bytes(len(chunk))

    def take_back(self) -> None:
        """Uncount what has to be sent again."""
        self._on_bytes(-self._sent)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pause(attempt: int) -> None:
    if attempt < _TRIES:
        time.sleep(min(0.25 * 2**attempt, 8.0))


def _refused(answer: httpx.Response) -> PosedropError:
    try:
        error = answer.json()["error"]
        message, code, field = error["message"], error["code"], error.get("field")
    except (ValueError, KeyError, TypeError):
        return PosedropError(f"{answer.request.url} answered {answer.status_code}")
    if answer.status_code == 401:
        message = f"{message} (set POSEDROP_API_TOKEN, or name the --data-dir that has it)"
    return PosedropError(message, code=code, field=field)


def _store_refused(name: str, answer: httpx.Response) -> StorageError:
    text = answer.text
    reason = f"status {answer.status_code}"
    for tag in ("Code", "Message"):
        if f"<{tag}>" in text:
            reason += f", {text.partition(f'<{tag}>')[2].partition(f'</{tag}>')[0]}"
    return StorageError(f"the object store refused {name}: {reason}")
