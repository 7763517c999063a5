"""The images that files of regions speak of: which there are below a folder, and how large each is."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from connectors.image_folder.listing import is_below, locate, walk
from connectors.images.decode import without_pillow_warnings
from connectors.images.examine import upright_size
from connectors.images.threads import map_in_threads
from connectors.region_files.labelled import RegionFileError, Size, Told, with_suffix
from pipeline.pool.reasons import PoolError
from pipeline.types import RegionKind


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
        found = sorted(self.below(uri) for uri in files if of_labels is None or not is_below(uri, of_labels))
        if not found:
            raise RegionFileError(f"{self.folder} holds no images: name their folder with --images")
        return tuple(found)

    @property
    def _of_labels(self) -> str | None:
        if self.but is None:
            return None
        folder, but = (os.path.normpath(path.absolute()) for path in (self.folder, self.but))
        return but if but != folder and is_below(but, folder) else None

    def below(self, uri: str) -> str:
        """The path of a file below the folder."""
        return Path(os.path.relpath(uri, self.folder.absolute())).as_posix()

    def find(self, names: Sequence[str]) -> list[str | None]:
        """The image that each name stands for, as a manifest's names do; None where there is none."""
        files = locate(names, self.folder, follow_links=True).files
        known = frozenset(self.paths)
        return [path if (path := self.below(file.uri)) in known else None for file in files]

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

    def files(self, suffix: str) -> dict[str, Path]:
        """All files of a suffix below the folder, links into other folders included, by the path below it.

        Raises:
            RegionFileError: there is no such folder, or two files differ in the capitals of the suffix alone.
        """
        if not self.path.is_dir():
            raise RegionFileError(f"{self.path}: wanted a folder of {suffix} files")
        found: dict[str, Path] = {}
        for file in _files_below(self.path):
            if file.suffix.lower() == suffix:
                path = with_suffix(file.relative_to(self.path).as_posix(), suffix)
                if found.setdefault(path, file) != file:
                    raise RegionFileError(f"{found[path]} and {file} are of one image: delete one of the two")
        return found

    def name_file(self, *usual: str) -> Path:
        """The file of the names of classes: the one that was named, or the first of the usual ones that is there.

        Raises:
            RegionFileError: there is none.
        """
        candidates = [self.names] if self.names else [self.path / name for name in usual]
        for file in candidates:
            if file.is_file():
                return file
        raise RegionFileError(f"{candidates[0]}: no such file; name the file of the class names with --names")


def _files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All files that are not hidden; no link leads back into a folder above it."""
    told = folder.stat()
    here = (told.st_dev, told.st_ino)
    if here in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_below(path, above | {here})
        elif path.is_file():
            yield path
