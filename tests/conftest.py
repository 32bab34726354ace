"""What every test file may use."""

import atexit
import os
import shutil
import signal
import tempfile

# Set before JAX starts, and so that child processes have it too. The tests compare programs on the CPU, whatever else
# the machine has; caches live and die with the session; a program that several tests use is compiled once.
_cache = tempfile.mkdtemp(prefix="jaxcnn-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XDG_CACHE_HOME"] = _cache
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_cache, "jaxcnn", "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would the programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
