"""Standard output that outlasts its reader: what cannot be shown or sent does not undo the work."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from dove_ext.errors import DoveWarning

_GONE = (errno.EPIPE, errno.EBADF, errno.ESHUTDOWN)  # the reader has closed it, or nobody has opened it


@contextmanager
def lasting_streams(program: str) -> Iterator[None]:
    """While the block runs, standard output is safe to print to, and `DoveWarning`s are one line of stderr.

    A character that the output's encoding lacks is escaped. Where nobody reads any more, as behind `| head`
    or `>&-`, text is dropped, and the block goes on to its own exit code.

    Args:
        program: put in front of warnings.
    """
    before, nowhere = (sys.stdout, sys.stderr), Path(os.devnull)
    if sys.stdout is None:  # Python's value for one that was closed from the start
        sys.stdout = nowhere.open("w")  # takes the free descriptor, so that no file becomes standard output
    if sys.stderr is None:
        sys.stderr = nowhere.open("w")
    sys.stdout = cast(TextIO, _Lasting(sys.stdout))
    try:
        with warnings.catch_warnings():
            # What Pillow grumbles about in a picture that it reads all the same.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.simplefilter("always", DoveWarning)
            show = warnings.showwarning

            def show_ours(message: Any, category: Any, *rest: Any, **options: Any) -> None:
                if issubclass(category, DoveWarning):
                    print(f"{program}: {message}", file=sys.stderr)
                else:
                    show(message, category, *rest, **options)

            warnings.showwarning = show_ours
            yield
    finally:
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose `write` and `flush` know neither missing characters nor a reader that is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        silence(self._stream)


def silence(stream: TextIO) -> None:
    """Let what a stream still holds, and what is to come, go nowhere; Python would try again when it ends."""
    with suppress(OSError):  # a stream that stands on no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
