"""Events that are written without tensorboardX are those that it would write."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from jaxcnn.runs.events import encode_event, frame_record

VALUES = {"Loss/train": 1.25e-7, "Accuracy/\N{GREEK SMALL LETTER ALPHA}" * 20: -3.0, "rate": float("inf")}


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300_000, 2**40])
def test_an_event_is_read_as_it_was_meant(step: int) -> None:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in VALUES.items()])
    wanted = Event(wall_time=1e9 + 0.1, step=step, summary=summary)
    assert Event.FromString(encode_event(1e9 + 0.1, step, values=VALUES)) == wanted
    wanted = Event(wall_time=2.5, step=step, session_log=SessionLog(status=SessionLog.START))
    assert Event.FromString(encode_event(2.5, step, restart=True)) == wanted
    wanted = Event(wall_time=2.5, step=step, file_version="brain.Event:2")
    assert Event.FromString(encode_event(2.5, step, file_version="brain.Event:2")) == wanted


@pytest.mark.parametrize("record", [b"", b"\0", bytes(range(256)) * 3])
def test_a_record_has_the_checksums_of_its_format(record: bytes) -> None:
    length = len(record).to_bytes(8, "little")
    sums = [masked_crc32c(each).to_bytes(4, "little") for each in (length, record)]
    assert frame_record(record) == length + sums[0] + record + sums[1]


@pytest.mark.slow
def test_what_a_run_leaves_is_written_without_importing_pytorch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import jax, numpy as np
import jaxcnn.runs.run
from jaxcnn.runs.metrics import Board
from jaxcnn.config import ModelConfig
from jaxcnn.model import init_variables
from jaxcnn.weights.files import write_state_dict

folder = Path(sys.argv[1])
Board(folder / "logs", []).add(1, {"Loss/train": 1.0})
model = ModelConfig(1, 1, 2, (2, 2, 2), (1,), (0,), (1,), 1)
shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
write_state_dict(folder / "model.pth", jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), model)
print({"torch", "tensorboardX", "matplotlib", "sklearn", "scipy.stats"} & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("set()\n", "")
    assert (tmp_path / "model.pth").exists()
    assert list((tmp_path / "logs").iterdir())
