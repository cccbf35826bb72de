"""The user's own code: run from its file, kept apart from modules of the same names, and told apart by its source."""

import hashlib
import pkgutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import nn

from robustmix.device import is_out_of_memory
from robustmix.errors import EvaluationError, SpecError
from robustmix.packages import one_line
from robustmix.progress import say
from robustmix.spec.names import unknown

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the user's code made.

    Attributes:
        network: with its weights.
        identity: what tells its code apart: the factory's name, and SHA-256 of the file and of what it imports from
            its folder.
        alone: a context in which importing what lies beside the file is an error in one line.
    """

    network: nn.Module
    identity: tuple[str, ...]
    alone: Callable[[], AbstractContextManager[None]]


def find_factory(spec: str) -> Callable[[], OwnNetwork]:
    """Run the user's file and find the factory in it.

    Args:
        spec: ``FILE.py:FACTORY``: a callable that makes a network, or a network itself.

    Returns:
        What calls the factory, once per call. It raises a SpecError in one line if the factory fails or makes anything
        but a network.

    Raises:
        SpecError: the file cannot be read, fails, or holds no such factory.
    """
    given, _, name = spec.rpartition(":")
    if not name:
        raise SpecError(f"{spec!r} names no factory: write {given}:FACTORY")
    path = code_path(spec)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{spec}: {given} cannot be read: {error.strerror}") from None
    say(f"{spec}: running your code in {path}")
    digest = hashlib.sha256(source).hexdigest()
    # Not by an import of that name, which could hide a module, and not by way of a cache: what runs is what was hashed.
    module = sys.modules[f"_robustmix_{digest[:16]}"] = ModuleType(f"_robustmix_{digest[:16]}")
    module.__file__, module.__package__ = str(path), ""
    beside = _Beside(spec, path.parent)
    with one_line(f"{spec} failed", SpecError, path=path), _absolute_imports(), beside.open():
        exec(compile(source, str(path), "exec"), module.__dict__)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise SpecError(f"{unknown('factory', name, own)} (in {path})")

    def make() -> OwnNetwork:
        with one_line(f"{spec} failed", SpecError, path=path), _absolute_imports(), beside.open():
            network = factory if isinstance(factory, nn.Module) else factory()
        if not isinstance(network, nn.Module):
            raise SpecError(f"{spec} returns {type(network).__name__}, not a torch.nn.Module")
        return OwnNetwork(network, ("file", digest, name, *beside.sources()), beside.closed)

    return make


def code_path(spec: str) -> Path:
    """The file of a ``FILE.py:FACTORY``."""
    return Path(spec.rpartition(":")[0]).expanduser().resolve()


@contextmanager
def running(what: str, path: Path | None = None) -> Iterator[None]:
    """Turn what a network raises into one line; keep what it prints out of our output.

    Args:
        what: failed.
        path: the user's file, whose last line on the way to the error is named.

    Raises:
        EvaluationError: anything was raised but that memory ran out, which stays as it is: smaller batches may do.
    """
    with redirect_stdout(sys.stderr):
        try:
            yield
        except (Exception, SystemExit) as error:
            if memory_ran_out(error):
                raise
            with one_line(what, EvaluationError, path=path):
                raise


def memory_ran_out(error: BaseException) -> bool:
    """Whether any error, of torch or of Python, says that memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


@contextmanager
def _absolute_imports() -> Iterator[None]:
    """Say of a relative import in the user's file what to write in its place."""
    try:
        yield
    except ImportError as error:
        if "no known parent package" not in str(error):
            raise
        hint = f"{error}; what lies beside the file is imported without a dot: from sub import ..."
        raise ImportError(hint).with_traceback(error.__traceback__) from None


class _Beside:
    """The modules in the folder of the user's file, kept apart from all others of the same names.

    What was imported from it is importable while the file or the factory runs, and at no other time: what a later
    import would find is not what was hashed, and may be another folder's.

    Args:
        spec: as given, for messages.
        folder: with the file.
    """

    def __init__(self, spec: str, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._modules: dict[str, ModuleType | None] = {}
        self._hashes: dict[str, str] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let code import what lies in the folder, as when it is run as a script."""
        with self._apart():
            sys.modules.update(self._modules)  # type: ignore[arg-type]
            before = sys.dont_write_bytecode
            # By its size and second alone, a cache of bytecode does not know each change of a source.
            sys.dont_write_bytecode = True
            invalidate_caches()
            sys.path.insert(0, str(self._folder))
            try:
                yield
            finally:
                sys.path.remove(str(self._folder))
                sys.dont_write_bytecode = before
                self._keep()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Refuse to import what lies in the folder, even where another folder has a module of that name."""
        with self._apart():
            kept_out = self._offered() - sys.modules.keys()
            sys.modules.update(dict.fromkeys(kept_out))  # type: ignore[arg-type]
            try:
                yield
            except ModuleNotFoundError as error:
                if str(error.name).partition(".")[0] not in kept_out:
                    raise
                raise SpecError(
                    f"{self._spec} imports {error.name} when it is called: import it at the top of the file or in the "
                    "factory, where the code beside it is read and told apart"
                ) from None

    def sources(self) -> list[str]:
        """The path in the folder and the SHA-256 of each module that was imported from it, sorted."""
        return [f"{path} {digest}" for path, digest in sorted(self._hashes.items())]

    def _keep(self) -> None:
        self._modules = {name: sys.modules[name] for name in self._names()}
        for module in self._modules.values():
            path = _place(module)
            if path and path.is_file() and path.is_relative_to(self._folder):
                relative = path.relative_to(self._folder).as_posix()
                self._hashes.setdefault(relative, hashlib.sha256(path.read_bytes()).hexdigest())

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Take the folder's modules away, and those that bear their names; in the end put back what there was."""
        hidden = {name: sys.modules.pop(name) for name in self._names()}
        try:
            yield
        finally:
            for name in self._names():
                del sys.modules[name]
            sys.modules.update(hidden)

    def _names(self) -> list[str]:
        """Names of modules that lie in the folder, or elsewhere under a name that it offers; no installed ones."""
        offered = self._offered()
        names = []
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top in {"robustmix", "__main__", "__mp_main__"} or top.startswith("_robustmix_"):
                continue
            path = _place(module)
            if (module is None and top in offered) or (
                path and not _installed(path) and (top in offered or path.is_relative_to(self._folder))
            ):
                names.append(name)
        return names

    def _offered(self) -> set[str]:
        if _installed(self._folder):
            return set()
        files = {found.name for found in pkgutil.iter_modules([str(self._folder)])} - sys.stdlib_module_names
        return files | {name.partition(".")[0] for name in self._modules}


def _place(module: ModuleType | None) -> Path | None:
    """The file of a module, or the folder of a package without one."""
    # Not by attribute: some libraries' modules compute theirs, and raise for these.
    facts = getattr(module, "__dict__", {})
    file = facts.get("__file__") or next(iter(facts.get("__path__", ())), None)
    return Path(file) if isinstance(file, str) else None


def _installed(path: Path) -> bool:
    """Whether a path belongs to Python itself or to what an installer put there, possibly beside the user's file."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(STANDARD_LIBRARY)
