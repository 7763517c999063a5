"""The images that files of regions speak of: which there are below a folder, and how large each is."""

import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from connectors.image_folder.listing import is_below, locate, path_from, walk
from connectors.images.decode import without_pillow_warnings
from connectors.images.examine import upright_size
from connectors.images.threads import map_in_threads
from connectors.region_files.labelled import RegionFileError, Told, two_images, with_suffix
from pipeline.pool.reasons import UNREAD, PoolError
from pipeline.types import RegionKind, Size


@dataclass(frozen=True)
class Images:
    """The images below a folder.

    Attributes:
        but: a folder whose pictures are labels, where it lies in the other.
    """

    folder: Path
    but: Path | None = None

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Paths below the folder, with / between the folders, sorted.

        Raises:
            RegionFileError: there is none.
        """
        if not self.folder.is_dir():
            raise RegionFileError(f"{self.folder}: no such folder of images; name it with --images")
        files = [file.uri for file in walk(self.folder, follow_links=True) if file.set_aside_reason is None]
        of_labels = self._of_labels
        found = sorted(
            path_from(self.folder, uri) for uri in files if of_labels is None or not is_below(uri, of_labels)
        )
        if not found:
            raise RegionFileError(f"{self.folder} holds no images: name their folder with --images")
        return tuple(found)

    @property
    def _of_labels(self) -> str | None:
        if self.but is None:
            return None
        folder, but = (os.path.normpath(path.absolute()) for path in (self.folder, self.but))
        return but if but != folder and is_below(but, folder) else None

    def find(self, names: Sequence[str]) -> list[str | None]:
        """The image that each name stands for, as a manifest's names do; None where there is none."""
        files = locate(names, self.folder, follow_links=True).files
        known = frozenset(self.paths)
        return [path if (path := path_from(self.folder, file.uri)) in known else None for file in files]

    def sizes(self, paths: Iterable[str], told: Told) -> dict[str, Size]:
        """Sizes by the headers of the files; an image that cannot be read is told, and has none."""

        def look(path: str) -> Size | PoolError:
            try:
                return Size(*upright_size(str(self.folder / path)))
            except PoolError as exc:
                return exc

        wanted = list(paths)
        with without_pillow_warnings():
            looked = map_in_threads(look, wanted)
        for size in looked:
            if isinstance(size, PoolError):
                told.add("images cannot be read, and their labels are left out", str(size))
        return {path: size for path, size in zip(wanted, looked, strict=True) if isinstance(size, Size)}


@dataclass(frozen=True)
class Source:
    """Where labels are read from.

    Attributes:
        path: file or folder of the labels.
        kind: of the regions that are wanted, "box" or "mask".
        names: file of the names of classes, where the format has none and none lies in the folder.
        told: gets what is left out or changed.
    """

    path: Path
    images: Images
    kind: RegionKind
    names: Path | None
    told: Told

    @property
    def folder(self) -> Path:
        """The folder of the labels.

        Raises:
            RegionFileError: there is none.
        """
        if not self.path.is_dir():
            is_what = "is a file: name the folder of the labels" if self.path.exists() else "no such folder of labels"
            raise RegionFileError(f"{self.path}: {is_what}")
        return self.path

    def files(self, suffix: str) -> dict[str, Path]:
        """All files of a suffix below the folder, links into other folders included, by the path below it.

        Raises:
            RegionFileError: there is no such folder, or two files differ in the capitals of the suffix alone.
        """
        found: dict[str, Path] = {}
        for file in walk(self.folder, follow_links=True, suffixes={suffix}):
            if file.set_aside_reason is None:
                path = with_suffix(path_from(self.folder, file.uri), suffix)
                if found.setdefault(path, Path(file.uri)) != Path(file.uri):
                    raise RegionFileError(f"{found[path]} and {file.uri} are of one image: delete one of the two")
            elif file.set_aside_reason.startswith(UNREAD):
                self.told.add("files or folders of labels are left out", f"{file.uri}: {file.set_aside_reason}")
        return found

    def label_of(
        self, files: Set[str], usual: Callable[[str], Set[str]], *, others: Set[str] = frozenset()
    ) -> dict[str, str]:
        """Image -> the file of its label, of those that it may have by its own name, links followed.

        Args:
            files: by their paths below the folder.
            usual: image -> paths below the folder.
            others: of the files, those that may be no labels at all.

        Raises:
            RegionFileError: an image has two, or two images have one.
        """
        true_folder = cache(lambda folder: os.path.realpath(self.folder / folder))

        def truly(file: str) -> tuple[str, str]:
            path = PurePosixPath(file)
            return true_folder(path.parent), path.name

        by_truth = {truly(file): file for file in files}
        image_of: dict[str, str] = {}
        for path in self.images.paths:
            found = sorted({by_truth[truly(file)] for file in usual(path) if truly(file) in by_truth})
            if len(found) > 1:
                raise RegionFileError(f"{self.path}: {path} has two labels, {' and '.join(found)}: delete one of them")
            if found and image_of.setdefault(found[0], path) != path:
                raise two_images(image_of[found[0]], path, found[0])
        for file in sorted(files - others - image_of.keys()):
            self.told.add(f"{PurePosixPath(file).suffix} files are of no image, and left out", file)
        return {path: file for file, path in image_of.items()}

    def name_file(self, *usual: str) -> Path:
        """The file of the names of classes: the one that was named, or the first of the usual ones that is there.

        Raises:
            RegionFileError: there is none.
        """
        candidates = [self.names] if self.names else [self.folder / name for name in usual]
        for file in candidates:
            if file.is_file():
                return file
        raise RegionFileError(f"{candidates[0]}: no such file; name the file of the class names with --names")
