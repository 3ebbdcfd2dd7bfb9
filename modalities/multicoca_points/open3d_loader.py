"""Imports open3d where the machine lacks the system libraries that it links.

open3d links libusb-1.0 (for depth cameras), which slim images do not have. The dynamic loader takes a library
that is already in the process for any later request of the same soname, so loading the copy that
`libusb_package` carries (soname libusb-1.0.so.0, as open3d asks for) is enough. Libraries that no Python package
carries are named with their Debian packages. The import takes over a second: only readers that need it call this.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from types import ModuleType

from multicoca.modality import require

SYSTEM_PACKAGES = {  # of open3d 0.20's dynamic section; libgomp is what earlier releases link
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11.so.6": "libx11-6",
    "libgomp.so.1": "libgomp1",
    "libidn2.so.0": "libidn2-0",
    "libudev.so.1": "libudev1",
    "libusb-1.0.so.0": "libusb-1.0-0",
}
_MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+?\.so[.\d]*): cannot open shared object file")


@functools.cache
def load_open3d() -> ModuleType:
    """Returns the module open3d; the first call imports it.

    Raises:
        ImportError: open3d or a library that it links is missing; the message says which command installs it.
    """
    if sys.platform == "linux":  # open3d's wheels for other systems carry their own
        path = require("libusb_package", "points").get_library_path()
        if path is not None:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    try:
        return require("open3d", "points")
    except ImportError as error:
        missing = _MISSING_LIBRARY.search(str(error))
        if missing is None:
            raise
        package = SYSTEM_PACKAGES.get(missing[1], f"(the package with {missing[1]})")
        others = " ".join(sorted({*SYSTEM_PACKAGES.values()} - {package}))
        raise ImportError(
            f"open3d needs the system library {missing[1]}, which this machine lacks. "
            f"Install it: apt-get install {package} (all that open3d may ask for: {package} {others}). "
            "open3d itself comes with: pip install 'multicoca[points]'"
        ) from error
