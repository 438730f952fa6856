"""Run the walk with a card where there is none: `python -m tests.material.card.start LIBRARY DATASET`.

What torch asks of a card is compiled, and loaded before torch, which asks while it is imported. This process is the
walk's own, as torch's tables change for good.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def build(library: Path) -> Path:
    """Compile the library, and return its path."""
    torch = Path(find_spec("torch").origin).parent
    subprocess.run(
        [
            *(os.environ.get("CXX", "g++"), "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch}/include"),
            *(str(Path(__file__).with_name("card.cpp")), "-o", str(library)),
            *(f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-lc10", "-ltorch_cpu"),
        ],
        check=True,
    )
    return library


def main() -> None:
    """Load the library, then torch, then walk."""
    library = ctypes.CDLL(sys.argv[1])
    from tests.material.card import walk

    library.take_over()
    walk.main(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
