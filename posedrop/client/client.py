"""The HTTP API, from the caller's side: for the command line, the demo and people's own scripts."""

from __future__ import annotations

import functools
import json
import mimetypes
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from posedrop.api.answer import Answer
from posedrop.api.batches import Batch, BatchStarted, CancelRequest, DryRun, RetryRequest
from posedrop.api.errors import ErrorAnswer
from posedrop.api.files import File, ReingestedPage, ReingestRequest
from posedrop.api.health import Ready
from posedrop.api.letters import DeadLetter, Replayed, ReplayRequest
from posedrop.api.retention import Expired, ExpireRequest, Expiry
from posedrop.api.rules import WrongRule
from posedrop.api.runs import AnalyseRequest, ComparisonAnswer, ResultFile, Run, RunRow, Started
from posedrop.api.telling import NotifyAgain, NotifyAlias, NotifyRequest, NotifyTested
from posedrop.api.uploads import (
    CHECKED_AT_ONCE,
    AbortRequest,
    CheckAnswer,
    Checked,
    CheckedFile,
    CheckRequest,
    CompleteRequest,
    PartsRequest,
    PartsTicket,
    SignAnswer,
    SignRequest,
    Ticket,
    Uploaded,
    UploadRequest,
)
from posedrop.buckets import layout, names, targets
from posedrop.client import parts
from posedrop.client.transfers import OnBytes, Transfers
from posedrop.errors import BadRequestError, ConfigurationError, PosedropError
from posedrop.hashing import sha256_of
from posedrop.proxies import ProxyTransport, proxy_of

T = TypeVar("T", bound=Answer)
B = TypeVar("B", bound=BaseModel)
A = TypeVar("A")

#: Seconds for which the network may be away while a folder goes up.
PATIENCE = 300.0
#: Seconds for which a video that is ready is waited for until it is known what is run on it.
_PLAN_SECONDS = 60.0
#: What a proxy answers itself while the API behind it does not.
_GATEWAY_STATUSES = frozenset({502, 503, 504})


class UnreachableError(PosedropError):
    """No API answers at the URL."""

    code = "unreachable"


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

        Raises:
            ConfigurationError: it is no URL.
        """
        self.url = url.rstrip("/")
        self._multipart_bytes = multipart_bytes
        self._has_answered = False
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(60.0, connect=5.0)
        try:
            self._api = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=timeout,
                transport=transport or ProxyTransport(),
            )
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{url!r} is no URL of an API: {error}") from error
        # Presigned URLs are for whoever has them; the token is the API's alone.
        self._store = Transfers(timeout, transport or ProxyTransport())

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
    ) -> Ticket | PartsTicket:
        """Put a video into the bucket; the analysis, if any, starts once it is there.

        Args:
            path: of the video.
            analysis: by name, as :meth:`analysis_types` lists them.
            args: of the analysis.
            on_bytes: called with the number of bytes that went up since the last call; negative
                when some have to go up again.

        Returns:
            Whose ``file_id`` it has; of a large video, which went up in parts, a PartsTicket.

        Raises:
            UnreachableError: the API does not answer.
            PosedropError: the API or the store refused, with its reason.
        """
        size = path.stat().st_size
        report = on_bytes or (lambda _: None)
        of: dict[str, Any] = {
            "size": size,
            "content_type": mimetypes.guess_type(path.name)[0],
            "analysis": analysis,
            "args": dict(args or {}),
        }
        if size > self._multipart_bytes:
            return self._upload_in_parts(path, _checked(PartsRequest, path=path.name, **of), report)
        wanted = _body(UploadRequest, filename=path.name, sha256=sha256_of(path), **of)
        ticket = self._json(Ticket, "POST", "/upload", json=wanted)
        self._store.put(path, size, ticket.upload, report)
        return ticket

    def _upload_in_parts(self, path: Path, wanted: PartsRequest, report: OnBytes) -> PartsTicket:
        begun: list[PartsTicket] = []
        waits = self._patience(PATIENCE)
        try:
            return parts.send(self, self._store, path, wanted, report, waits, begun.append)
        except BaseException:
            # No later try would go on with these parts: they would lie in the store unseen.
            for ticket in begun:
                with suppress(PosedropError):
                    self._abort_parts(ticket)
            raise

    def _abort_parts(self, ticket: PartsTicket) -> None:
        wanted = _body(AbortRequest, key=ticket.key, upload_id=ticket.upload_id)
        self._request("POST", "/uploads/parts/abort", json=wanted)

    def check_uploads(
        self,
        to: str,
        files: Sequence[CheckedFile],
        analysis: str | None = None,
        *,
        patience: float = 0.0,
    ) -> list[Checked]:
        """Return what would become of files in the folder ``to``, in their order.

        Args:
            to: the folder; empty: that of each file's own path.
            files: by path below it.
            analysis: what is asked for all of them.
            patience: seconds for which the network may be away.
        """
        found: list[Checked] = []
        waits = self._patience(patience)
        # A rule is looked at with the films that it is for.
        rules = [file for file in files if layout.is_folder_rule(file.path)]
        rest = [file for file in files if not layout.is_folder_rule(file.path)]
        step = CHECKED_AT_ONCE - len(rules)
        if step < CHECKED_AT_ONCE // 5:  # or each film would cost a request of its own
            raise BadRequestError(f"there are {len(rules):,} posedrop.json: too many at a time")
        for start in range(0, max(1, len(rest)), step):
            wanted = _body(
                CheckRequest,
                to=to,
                files=[*rules, *rest[start : start + step]],
                analysis=analysis,
            )
            ask = functools.partial(self._json, CheckAnswer, "POST", "/uploads/check", json=wanted)
            found += parts.until_there(waits, ask).items
        answers = {each.path: each for each in found}
        return [answers[file.path] for file in files]

    def upload_into(
        self,
        path: Path,
        to: str,
        name: str | None = None,
        *,
        analysis: str | None = None,
        args: Mapping[str, Any] | None = None,
        on_bytes: OnBytes | None = None,
        patience: float = PATIENCE,
    ) -> PartsTicket:
        """Put a video into a folder of the bucket, unless it is there; go on where it was.

        Args:
            path: of the video.
            to: the folder, such as ``cohort3/day1``.
            name: below the folder, with ``/`` between; None: the file's own.
            analysis: by name, as :meth:`analysis_types` lists them.
            args: of the analysis.
            on_bytes: like :meth:`upload`; what was there before is counted too.
            patience: seconds for which the network may be away.

        Raises:
            PosedropError: it was refused, with the reason, or the network was away for too long.
        """
        name = name or path.name
        targets.key_in(targets.check_folder(to), name)  # says why better than a field's bound does
        wanted = _checked(
            PartsRequest,
            path=name,
            size=path.stat().st_size,
            to=to,
            content_type=mimetypes.guess_type(path.name)[0],
            analysis=analysis,
            args=dict(args or {}),
        )
        report = on_bytes or (lambda _: None)
        waits = self._patience(patience)
        return parts.send(self, self._store, path, wanted, report, waits)

    def has_store(self) -> bool:
        """Tell whether the server is there and can store films; else no film can go up now."""
        try:
            answer = self._api.get("/readyz")
            of = Ready.model_validate_json(answer.content).parts
        except (httpx.TransportError, ValidationError):
            return False
        return of.get("store") == of.get("disk") == "ok"

    def begin_parts(self, wanted: PartsRequest) -> PartsTicket:
        """Begin an upload in parts, or go on with one."""
        return self._json(PartsTicket, "POST", "/uploads/parts", json=_plain(wanted))

    def sign_parts(self, wanted: SignRequest) -> SignAnswer:
        """Return presigned PUTs of parts."""
        return self._json(SignAnswer, "POST", "/uploads/parts/sign", json=_plain(wanted))

    def complete_parts(self, wanted: CompleteRequest) -> Uploaded:
        """Make the parts of an upload an object of the bucket."""
        return self._json(Uploaded, "POST", "/uploads/parts/complete", json=_plain(wanted))

    def file(self, file_id: str) -> File:
        """Return a video as the server knows it."""
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
        order: str | None = None,
    ) -> Iterator[File]:
        """Yield the videos, page by page: the newest first, or by name."""
        return self._pages(File, "/files", q=query, state=state, prefix=prefix, order=order)

    def wrong_rules(self) -> list[WrongRule]:
        """Return the rules that are wrong."""
        items = self._request("GET", "/rules").json()["items"]
        return [WrongRule.model_validate(item) for item in items]

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
        retry: bool = True,
        notify: Sequence[str] | None = None,
        dry_run: bool = False,
    ) -> Started:
        """Ask for an analysis; the same one on the same content is answered with what exists.

        Args:
            file_id: of the video.
            analysis: by name.
            args: of the analysis.
            force: run it anew though results exist.
            retry: make anew what failed or was cancelled; False: only what had done so before this
                video was uploaded.
            notify: aliases of the server that are told when it is done; None: as it is set there.
            dry_run: start nothing, but say what would be done and what it costs.
        """
        wanted = _body(
            AnalyseRequest,
            file_id=file_id,
            analysis=analysis,
            args=dict(args or {}),
            force=force,
            retry=retry,
            notify=list(notify) if notify is not None else None,
            dry_run=dry_run,
        )
        return self._json(Started, "POST", "/analyse", json=wanted)

    def analyse_many(
        self,
        analysis: str,
        args: Mapping[str, Any] | None = None,
        *,
        prefix: str | None = None,
        file_ids: Sequence[str] | None = None,
        dry_run: bool = False,
        **more: Any,
    ) -> BatchStarted | DryRun:
        """Ask for an analysis of many videos: those below ``prefix``, or those of ``file_ids``.

        Args:
            analysis: by name.
            args: of the analysis.
            prefix: of the videos' keys; empty: all of them.
            file_ids: of the videos.
            dry_run: only say what would be done.
            more: further fields of :class:`posedrop.api.runs.AnalyseRequest`.
        """
        return self._batch(
            "/analyse",
            _body(
                AnalyseRequest,
                analysis=analysis,
                args=dict(args or {}),
                prefix=prefix,
                file_ids=list(file_ids) if file_ids is not None else None,
                dry_run=dry_run,
                **more,
            ),
        )

    def cancel_many(self, **which: Any) -> BatchStarted | DryRun:
        """Stop all runs below a ``prefix``, or of a ``batch_id``; nothing is deleted."""
        return self._batch("/cancel", _body(CancelRequest, **which))

    def retry_many(self, **which: Any) -> BatchStarted | DryRun:
        """Make anew what failed below a ``prefix``, or in a ``batch_id``."""
        return self._batch("/retry", _body(RetryRequest, **which))

    def _batch(self, path: str, body: dict[str, Any]) -> BatchStarted | DryRun:
        answer = self._request("POST", path, json=body, timeout=None)
        is_begun = answer.status_code == 202
        kind: type[BatchStarted | DryRun] = BatchStarted if is_begun else DryRun
        return kind.model_validate_json(answer.content)

    def batch(self, batch_id: str) -> Batch:
        """Return a batch: how far it is."""
        return self._json(Batch, "GET", f"/batches/{batch_id}")

    def batches(self) -> Iterator[Batch]:
        """Yield the batches, the newest first, page by page."""
        return self._pages(Batch, "/batches")

    def wait_for_batch(
        self, batch_id: str, *, on_progress: Callable[[Batch], None] | None = None
    ) -> Batch:
        """Return a batch once all of its runs are over."""
        started, waits = time.monotonic(), self._patience(PATIENCE)
        while True:
            batch = parts.until_there(waits, functools.partial(self.batch, batch_id))
            if on_progress is not None:
                on_progress(batch)
            if batch.over:
                return batch
            time.sleep(pause(time.monotonic() - started))

    def run(self, analysis_id: str) -> Run:
        """Return a run: how far it is, or its results."""
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
        started, waits = time.monotonic(), self._patience(min(PATIENCE, seconds))
        while True:
            run = parts.until_there(waits, functools.partial(self.run, analysis_id))
            if on_progress is not None:
                on_progress(run)
            if run.over:
                return run
            waited = time.monotonic() - started
            if waited > seconds:
                raise PosedropError(f"{analysis_id} was not over after {seconds:.0f} s")
            time.sleep(pause(waited))

    def wait_for_file(self, file_id: str, *, seconds: float = float("inf")) -> File:
        """Return a video once it was looked at: ready or refused, or gone again.

        For what is to be run on one that is ready, it waits a minute at most: ``planned`` is false
        of one of which that is not known even then.

        Raises:
            PosedropError: that took longer than ``seconds``.
        """
        deadline, waits = time.monotonic() + seconds, self._patience(min(PATIENCE, seconds))
        planned_by: float | None = None
        while True:
            file = parts.until_there(waits, functools.partial(self.file, file_id))
            now = time.monotonic()
            if file.state == "ready" and file.planned is False:
                # It is planned by another event than the one that made it ready.
                planned_by = planned_by or min(now + _PLAN_SECONDS, deadline)
                if now > planned_by:
                    return file
            elif file.state in {"ready", "refused", "film gone"}:
                return file
            elif now > deadline:
                raise PosedropError(f"{file_id} was not looked at within {seconds:.0f} s")
            time.sleep(0.5)

    def runs(
        self,
        query: str | None = None,
        *,
        state: str | None = None,
        file_id: str | None = None,
        prefix: str | None = None,
        model: str | None = None,
        asked_by: str | None = None,
        order: str | None = None,
    ) -> Iterator[RunRow]:
        """Yield the runs, page by page: the newest, those of the lowest quality, or by name."""
        filters = {"q": query, "state": state, "file_id": file_id, "prefix": prefix, "order": order}
        filters |= {"model": model, "asked_by": asked_by}
        return self._pages(RunRow, "/analyses", **filters)

    def cancel(self, analysis_id: str) -> str:
        """Stop a run, and return what happened; no results of one that is over are deleted.

        Raises:
            PosedropError: it is over (``over``), or there is none.
        """
        return self._delete_run(analysis_id, only="cancel")

    def delete_run(self, analysis_id: str) -> str:
        """Delete the results of a run that is over, or stop it; return what happened."""
        return self._delete_run(analysis_id)

    def _delete_run(self, analysis_id: str, **params: str) -> str:
        answer = self._request("DELETE", f"/analyse/{analysis_id}", params=params)
        return "deleted" if answer.status_code == 204 else str(answer.json()["status"])

    def analysis_types(self) -> list[dict[str, Any]]:
        """Return the kinds of analyses, each with the JSON Schema of its args."""
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

    def reingest(self, prefix: str) -> dict[str, str]:
        """Have refused videos looked at anew; return their keys by file_id."""
        found: dict[str, str] = {}
        cursor: str | None = None
        while True:
            wanted = _body(ReingestRequest, prefix=prefix, cursor=cursor)
            page = self._json(ReingestedPage, "POST", "/reingest", json=wanted, timeout=None)
            found |= {item.file_id: item.key for item in page.items}
            if page.next is None:
                return found
            cursor = page.next

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the events that could not be followed, the newest first, page by page."""
        return self._pages(DeadLetter, "/dead-letters")

    def replay(self, ids: Sequence[int] | None = None) -> Replayed:
        """Have dead letters followed again, or all; return how many are, and how many can't be."""
        wanted = _body(ReplayRequest, ids=list(ids) if ids is not None else None)
        path = "/dead-letters/replay"
        return self._json(Replayed, "POST", path, json=wanted, timeout=None)

    def notify_aliases(self) -> list[NotifyAlias]:
        """Return who can be told that runs are over."""
        items = self._request("GET", "/notify").json()["items"]
        return [NotifyAlias.model_validate(item) for item in items]

    def notify_test(self, alias: str) -> NotifyTested:
        """Have a notice sent to an alias now; return whether it was taken."""
        wanted = _body(NotifyRequest, alias=alias)
        return self._json(NotifyTested, "POST", "/notify/test", json=wanted)

    def notify_again(self, alias: str) -> int:
        """Have notices sent again that were given up; return how many."""
        wanted = _body(NotifyRequest, alias=alias)
        return self._json(NotifyAgain, "POST", "/notify/again", json=wanted).due

    def expiry(self) -> Expiry:
        """Return the films and runs that are due to be removed, and why."""
        return self._json(Expiry, "GET", "/expire", timeout=None)

    def expire(self, due: int) -> Expired:
        """Remove what is due, as long as that is not more than ``due`` films and runs."""
        wanted = _body(ExpireRequest, due=due)
        return self._json(Expired, "POST", "/expire", json=wanted, timeout=None)

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
            path = folder / layout.safe_filename(file.name, names.MAX_NAME_BYTES)
            if on_file is not None:
                on_file(file)
            self.fetch(file, path, on_bytes or (lambda _: None))
            paths.append(path)
        path = folder / layout.RESULT
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(json.dumps(run.result, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        return [*paths, path]

    def export(
        self,
        analysis_id: str,
        name: str,
        to: Path,
        *,
        again: bool = False,
        on_bytes: OnBytes | None = None,
        seconds: float = float("inf"),
    ) -> Path:
        """Fetch a run's poses in another format, once they are made; return the file's path.

        Args:
            analysis_id: of a run that is over.
            name: ``poses.nwb``, ``poses.slp``, ``poses.nc``, ``poses.parquet`` or ``coco.json``.
            to: where the file goes: its own path, if that ends as ``name`` does, else a folder.
            again: have it tried again, if it could not be made.
            on_bytes: as :meth:`download` has it.
            seconds: how long it is waited for.

        Raises:
            PosedropError: it can't be made, with the reason; or it was not made after ``seconds``.
        """
        url = f"/download/{analysis_id}/{name}"
        if again:
            self._request("POST", url)
        self._made(lambda: self._location(url), seconds)
        return self._fetch_one(self.run(analysis_id), name, to, on_bytes)

    def compare(
        self, a: str, b: str, *, again: bool = False, seconds: float = float("inf")
    ) -> ComparisonAnswer:
        """Return how far apart two runs of one film put their keypoints, once that is known.

        Args:
            a: a run that is over, by its id.
            b: another one.
            again: have it tried again, if they could not be compared.
            seconds: how long it is waited for.

        Raises:
            PosedropError: they can't be compared, with the reason; or that was not done after
                ``seconds``.
        """
        ids = {"a": a, "b": b}
        if again:
            self._request("POST", "/compare", params=ids)
        return self._made(
            lambda: self._json(ComparisonAnswer, "GET", "/compare", params=ids), seconds
        )

    def _made(self, ask: Callable[[], A], seconds: float) -> A:
        """Ask until what is made when it is asked for is there; return the answer."""
        started, waits = time.monotonic(), self._patience(min(PATIENCE, seconds))
        while True:
            try:
                return parts.until_there(waits, ask)
            except PosedropError as error:
                waited = time.monotonic() - started
                if error.code != "being_made" or waited > seconds:
                    raise
                waits.succeeded()  # it answers
                time.sleep(pause(waited))

    def _fetch_one(self, run: Run, name: str, to: Path, on_bytes: OnBytes | None = None) -> Path:
        file = names.find(run.files, name)
        if file is None:
            raise PosedropError(f"{run.analysis_id} has no file {name}", code="not_found")
        is_file = to.suffix.lower() == Path(name).suffix and not to.is_dir()
        path = to if is_file else to / layout.safe_filename(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fetch(file, path, on_bytes or (lambda _: None))
        return path

    def table(self, analysis_id: str) -> Any:
        """Return a run's poses as DeepLabCut's ``pandas.DataFrame``; pandas has to be installed."""
        import pandas as pd

        with tempfile.TemporaryDirectory() as folder:
            path = self._fetch_one(self.run(analysis_id), "poses.csv", Path(folder))
            with path.open(encoding="utf-8") as file:
                levels = next(n for n, line in enumerate(file) if line.startswith("coords,")) + 1
            header = list(range(levels))
            return pd.read_csv(path, header=header, index_col=0, float_precision="round_trip")

    def poses(self, analysis_id: str) -> Any:
        """Return a run's poses as movement's ``xarray.Dataset``; xarray has to be installed."""
        import xarray as xr

        with tempfile.TemporaryDirectory() as folder:
            return xr.load_dataset(self.export(analysis_id, "poses.nc", Path(folder)))

    def fetch(self, file: ResultFile, path: Path, on_bytes: OnBytes) -> None:
        """Fetch one file of a run, as :meth:`download` does.

        Raises:
            StorageError: it can't be had whole.
        """
        ask = functools.partial(self._location, file.url)

        def locate() -> str:
            return parts.until_there(self._patience(PATIENCE), ask)

        self._store.fetch(locate, path, file.size, file.sha256, on_bytes)

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
            by = " by the proxy of the environment" if proxy_of(self.url) else ""
            raise UnreachableError(
                f"nothing answers at {self.url}{by} ({error}); start it with `posedrop up`, "
                "or say where it is with --url"
            ) from error
        if answer.status_code >= 400:
            refused = _refused(answer)
            self._has_answered |= refused.code != "unreachable"
            raise refused
        self._has_answered = True
        return answer

    def _patience(self, seconds: float) -> parts.Patience:
        return parts.Patience(seconds, self.has_store, lambda: self._has_answered)


def _plain(request: BaseModel) -> dict[str, Any]:
    """Return a request's body without defaults, which an older server may not know."""
    return request.model_dump(exclude_defaults=True)


def _body(kind: type[BaseModel], **fields: Any) -> dict[str, Any]:
    """Return the body of a request: without defaults, which an older server may not know.

    Raises:
        BadRequestError: no server would take it.
    """
    return _plain(_checked(kind, **fields))


def _checked(kind: type[B], **fields: Any) -> B:
    """Return a request; one that no server would take is a BadRequestError."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadRequestError(f"{field}: {first['msg']}", field=field) from error


def pause(waited: float) -> float:
    """Return the seconds until a run is asked for again, after ``waited`` seconds: 5 %, at most 2.

    Each answer costs the server some reads of the bucket, and it has videos to analyse.
    """
    return min(2.0, max(0.5, waited / 20))


def _refused(answer: httpx.Response) -> PosedropError:
    try:
        error = ErrorAnswer.model_validate_json(answer.content).error
    except ValidationError:
        said = f"{answer.request.url} answered {answer.status_code}"
        if answer.status_code in _GATEWAY_STATUSES:
            return UnreachableError(f"{said}: the API behind it is away")
        return PosedropError(said)
    message = error.message
    if answer.status_code == 401:
        message = f"{message} (name the URL that `posedrop up` printed, or set POSEDROP_API_TOKEN)"
    return PosedropError(message, code=error.code, field=error.field)
