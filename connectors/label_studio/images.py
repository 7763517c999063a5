"""The images that a project shows: the folder that is served, the address of each, a look whether it loads."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable, AuthenticationFailed
from connectors.images.reading import Reading
from connectors.images.shown import RENDITIONS, check_shown, file_to_show, link_to_show, rendition_of, size_shown
from connectors.label_studio.api import Api
from connectors.label_studio.project import Project
from connectors.label_studio.storages import HELP, NEVER_MATCHES, TITLE, Storages, one_of_each
from connectors.label_studio.stores import STORES, address_in, bucket_of, scheme_of, uri_of
from pipeline.pool.reasons import PoolError
from pipeline.types import Size

LOCAL_FILES = "/data/local-files/?d="
FOLDERS = "localfiles"


class ShownImages:
    """Images as a project of Label Studio shows them; the arguments are those of `LabelStudio`."""

    def __init__(
        self,
        api: Api,
        project: Project,
        *,
        images_root: Path | None,
        shown_in: Path | None,
        reading: Reading,
        presign_minutes: int | None,
    ) -> None:
        self._api = api
        self._url = api.connection.url
        self._project = project
        self._images_root = _normal(images_root) if images_root else None
        self._shown_in = _normal(shown_in) if shown_in else None
        self._reading = reading
        self._stores = Storages(api, project, presign_minutes=presign_minutes)

    def attach_storage(self, addresses: Iterable[str] = ()) -> None:
        """Let the project show local images, where there are any, and these of object stores.

        Raises:
            PoolUnavailable: an object store does not answer.
        """
        wanted = tuple(addresses)
        try:
            self._stores.attach(wanted)
        except (AnnotationToolUnavailable, AuthenticationFailed):
            raise
        except AnnotationToolError as exc:
            for address in one_of_each(wanted).values():
                if why := self.why_lost(address):  # where its store was away, it is back, or that is told
                    raise AnnotationToolError(why) from exc
            self._stores.attach(wanted)
        if not (self._shown_in or self._images_root):
            return
        root = self._served_root
        if self._shown_in:
            _made(self._shown_in)
        self._api.connection.repeatable(lambda: self._find_or_attach_storage(root))

    def lacks_storage(self, addresses: Iterable[str]) -> bool:
        """Whether the project does not show local images, where there are to be any, or these of object stores."""
        if self._stores.lacks(addresses):
            return True
        if not (self._shown_in or self._images_root):
            return False
        root = self._served_root
        return not self._api.connection.repeatable(lambda: self._is_attached(root))

    def address(self, uri: str, item_id: str) -> str:
        """What a browser that shows Label Studio loads an image from.

        Raises:
            AnnotationToolError: the image is gone, or cannot be shown.
        """
        scheme = scheme_of(uri)
        if scheme in STORES:
            return self._rendition(uri, item_id) or address_in(uri)
        if scheme not in ("", "file"):
            return uri
        path = _normal(Path(url2pathname(urlsplit(uri).path) if uri.startswith("file://") else uri))
        served = self._served_root
        roots = [root for root in (self._images_root, served) if root and path.is_relative_to(root)]
        if not roots and not self._shown_in:
            raise AnnotationToolError(f"image {uri} is not in images_root, {self._images_root}")
        if not path.is_file():
            raise AnnotationToolError(f"image {uri} is not there any more")
        with _laying_out(uri, self._shown_in or roots[0] / RENDITIONS):
            if self._shown_in:
                shown = served / link_to_show(path, item_id, folder=self._shown_in, reading=self._reading).name
            else:
                file = file_to_show(path, item_id, root=roots[0], reading=self._reading)
                shown = served / file.relative_to(roots[0])
        return self._address_of(shown)

    def _rendition(self, uri: str, item_id: str) -> str:
        """The address of what is shown in place of an object that browsers do not show; empty for others."""
        if self._shown_in is None:
            return ""
        with _laying_out(uri, self._shown_in):
            shown = rendition_of(uri, item_id, folder=self._shown_in, reading=self._reading)
        return self._address_of(self._served_root / shown.name) if shown else ""

    def _address_of(self, file: Path) -> str:
        return f"{LOCAL_FILES}{quote(file.relative_to(self._document_root).as_posix())}"

    def size(self, address: str) -> Size | None:
        """How large browsers show the image of an address; None for one that is not ours to look at.

        Raises:
            AnnotationToolError: the image cannot be read.
        """
        if bucket_of(address):
            uri = uri_of(address)
        elif address.startswith(LOCAL_FILES):
            uri = str(self._document_root / unquote(address.removeprefix(LOCAL_FILES)))
        else:
            return None
        try:
            return Size(*size_shown(uri, self._reading))
        except (PoolError, OSError) as exc:
            raise AnnotationToolError(f"image {exc}: annotators cannot be shown it") from exc

    def why_lost(self, address: str) -> str:
        """Why an object cannot be read, which no other keys of Label Studio mend; empty for what else there is.

        Raises:
            PoolUnavailable: its store does not answer, which has nothing to do with Label Studio.
        """
        if not bucket_of(address) or self._reading.objects is None:
            return ""
        try:
            with self._reading.open(uri_of(address)):
                return ""
        except PoolError as exc:
            return f"image {uri_of(address)}: {exc}: annotators cannot be shown it"

    def check_one(self, addresses: dict[str, str]) -> list[str]:
        """Load the first image that is not lost, as `check` does; why the ones before it are lost."""
        lost = []
        for uri, address in addresses.items():
            if not self._problem_with(address):
                break
            if not (why := self.why_lost(address)):
                self.check({uri: address})
                break
            lost.append(why)
        return lost

    def check(self, addresses: dict[str, str], *, may_renew: bool = True) -> None:
        """Load an image of each kind as a browser does; nobody should label what is not shown.

        Args:
            addresses: uri -> address; of a kind, the first is loaded.
            may_renew: whether a storage that does not show what is there may be given the keys of now.

        Raises:
            AnnotationToolError: one is not shown.
            PoolUnavailable: the store of one does not answer.
        """
        kinds = {
            (bucket_of(address), Path(uri).suffix.lower(), Path(address).suffix): (uri, address)
            for uri, address in reversed(addresses.items())
        }
        for uri, address in kinds.values():
            problem = self._problem_with(address)
            if problem and may_renew and bucket_of(address) and not self.why_lost(address):
                problem = self._problem_with(address)  # its store may have been away for a moment
                if problem and self._stores.renew(address):
                    problem = self._problem_with(address)
            if problem and bucket_of(address):
                raise AnnotationToolError(
                    f"annotators would not see image {uri}: {problem}. {HELP}. Let nobody label before "
                    "`labelcycle run` finds the image"
                )
            if problem:
                folder = self._shown_in or self._images_root
                raise AnnotationToolError(
                    f"annotators would not see image {uri} at {self._url}{address}: {problem}. Is the file "
                    f"there, and may the user that runs Label Studio read it and {folder}? "
                    "Let nobody label before `labelcycle run` finds the image"
                )

    @cached_property
    def _document_root(self) -> Path:
        """The folder that addresses of local images are relative to.

        Label Studio names it only when it refuses to serve a folder, and "/" it always refuses.
        """
        try:
            self._api.connection.repeatable(lambda: self._api.check_storage(self._project.id, "/"))
        except (AnnotationToolUnavailable, AuthenticationFailed):
            raise
        except AnnotationToolError as exc:
            named = re.search(r'LOCAL_FILES_DOCUMENT_ROOT="([^"]+)"', str(exc))
            if named:
                return Path(named[1])
            raise
        raise AnnotationToolError(f"Label Studio at {self._url} does not say where it looks for local images")

    def _find_or_attach_storage(self, root: Path) -> None:
        if self._is_attached(root):
            return
        self._api.attach_storage(
            FOLDERS,
            self._project.id,
            {"path": str(root), "title": TITLE, "regex_filter": NEVER_MATCHES, "use_blob_urls": True},
        )

    def _is_attached(self, root: Path) -> bool:
        held = self._api.storages(FOLDERS, self._project.id)
        return any(one.path and root.is_relative_to(one.path) for one in held)

    @cached_property
    def _served_root(self) -> Path:
        """`shown_in` or `images_root` as the server knows it."""
        wanted = self._shown_in or self._images_root
        if wanted is None:
            raise AnnotationToolError("local images need images_root, the folder that they lie in")
        for root in (wanted, wanted.resolve()):
            if self._document_root in root.parents:
                return root
        if self._shown_in:
            raise AnnotationToolError(
                f"Label Studio at {self._url} serves local images only from folders below {self._document_root}, and "
                f"{self._shown_in} is not one: it was started by another version. Run `labelcycle up` again"
            )
        raise AnnotationToolError(
            f"Label Studio at {self._url} serves local images only from folders below {self._document_root}, "
            f"and {wanted} is not one. Start it with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={wanted.parent}; "
            'or, if it is the server of `labelcycle up`, write url = "local"'
        )

    def _problem_with(self, address: str) -> str:
        if bucket_of(address):
            return self._stores.problem_with(address)
        if not address.startswith("/data/local-files/"):
            return ""  # an address of its own, which the browser may reach and we may not
        return self._api.connection.repeatable(lambda: self._load(address))

    def _load(self, address: str) -> str:
        connection = self._api.connection
        with connection.talk():
            answer = connection.send("GET", address)
            if answer.status_code >= 500 or answer.status_code in (401, 429):
                answer.raise_for_status()
        if answer.status_code != 200:
            return f"Label Studio answers {answer.status_code}"
        return check_shown(answer.content, answer.headers.get("content-type", ""))


@contextmanager
def _laying_out(uri: str, folder: Path) -> Iterator[None]:
    """Tell what goes wrong while an image, or what is shown in its place, is laid out in a folder."""
    try:
        yield
    except PoolError as exc:
        raise AnnotationToolError(f"image {exc}: annotators cannot be shown it") from exc
    except OSError as exc:
        raise AnnotationToolError(
            f"image {uri}: browsers do not show it as it is, and what they are given instead goes to {folder}: "
            f"{exc.strerror or exc}. Let labelcycle write there"
        ) from exc


def _normal(path: Path) -> Path:
    """Absolute and without "..", symbolic links kept: the server opens what the path says."""
    return Path(os.path.normpath(path.absolute()))


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise AnnotationToolError(f"{folder} cannot be made: {exc.strerror}") from exc
