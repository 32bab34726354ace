"""What is printed while a run trains: on terminals of several kinds, in files and in notebooks."""

import builtins
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from small_training import STANDARDISATION
from tiny_run import TINY

from jaxcnn.data.sets import load_dataset
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.runs import display
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.display import Bar, print_start, print_turn, results_table
from jaxcnn.training.records import EpochRecord, Metrics

SMALL = EpochRecord(7, 1.2345, 45.67, 1.3456, 43.21, 1e-3, 14.24, 580.0)
LARGE = EpochRecord(1234, 12.3456, 100.0, 12.3456, 100.0, 0.00012, 5025.3, 1_234_567.0)


class Screen(io.StringIO):
    """A file that is a terminal or not, and counts how often it was flushed."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.flushed = terminal, 0

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed += 1


def opened(*, terminal: bool, **environment: str) -> tuple[Terminal, Screen]:
    screen = Screen(terminal=terminal)
    return Terminal(soft_wrap=True, file=screen, _environ={"TERM": "xterm", **environment}), screen


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def frame(bar: Bar, width: int = 80) -> str:
    """The bar as it would be drawn now."""
    shown = io.StringIO()
    Console(file=shown, width=width).print(bar._bar.get_renderable())
    return shown.getvalue().rstrip("\n")


def seen(images: int, loss: float = 2.0) -> Metrics:
    return Metrics(loss * images, 0.25 * images, images)


# Lines


@pytest.mark.parametrize(
    ("record", "epochs", "is_best", "line"),
    [
        (SMALL, 200, True, "epoch   7/200  train 1.2345  45.67%  val 1.3456  43.21%  lr 0.001  14.2s  best"),
        (SMALL, 7, False, "epoch 7/7  train 1.2345  45.67%  val 1.3456  43.21%  lr 0.001  14.2s"),
        (LARGE, 2000, True, "epoch 1234/2000 train 12.3456 100.00% val 12.3456 100.00% lr 0.00012 5025s best"),
        (LARGE, 2000, False, "epoch 1234/2000 train 12.3456 100.00% val 12.3456 100.00% lr 0.00012 5025s"),
        (
            LARGE._replace(val_loss=None, val_accuracy=None),
            2000,
            False,
            "epoch 1234/2000  train 12.3456 100.00%  lr 0.00012  5025s",
        ),
        (
            SMALL._replace(learning_rate=1.25e-7, seconds=99.96, train_loss=0.00004),
            9999,
            True,
            "epoch    7/9999 train 0.0000  45.67% val 1.3456  43.21% lr 1.2e-07 100.0s best",
        ),
    ],
)
def test_an_epochs_line_fits_eighty_columns(record: EpochRecord, epochs: int, is_best: bool, line: str) -> None:
    terminal, screen = opened(terminal=False)
    Bar(terminal, epochs, 100, 0, 0).epoch(record, is_best=is_best)
    assert screen.getvalue() == f"{line}\n"
    assert len(line) <= 80


ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {"NO_COLOR": "1"},
    {"TERM": "dumb"},
    {"COLUMNS": "40"},
    {"COLUMNS": "0"},
    {"FORCE_COLOR": "1"},
    {"TTY_COMPATIBLE": "1"},
    {"TTY_INTERACTIVE": "1"},
]


def two_epochs(terminal: Terminal) -> None:
    with Bar(terminal, 200, 100, 6, 0) as bar:
        bar.step(50, seen(50))
        bar.step(100, seen(100))
        bar.epoch(SMALL, is_best=True)
        bar.step(50, seen(50))
        bar.epoch(SMALL._replace(epoch=8), is_best=False)


TWO_LINES = (
    "epoch   7/200  train 1.2345  45.67%  val 1.3456  43.21%  lr 0.001  14.2s  best\n"
    "epoch   8/200  train 1.2345  45.67%  val 1.3456  43.21%  lr 0.001  14.2s\n"
)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_a_file_gets_the_lines_and_nothing_else(environment: dict[str, str]) -> None:
    terminal, screen = opened(terminal=False, **environment)
    two_epochs(terminal)
    assert screen.getvalue() == TWO_LINES
    assert screen.flushed >= 2  # each as it happens


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_a_terminal_keeps_the_lines(environment: dict[str, str]) -> None:
    terminal, screen = opened(terminal=True, **environment)
    two_epochs(terminal)
    printed = screen.getvalue()
    drawn = re.split(r"[\r\n]+", plain(printed))
    assert [line for line in drawn if "train" in line] == TWO_LINES.splitlines()
    assert ("compiling" in printed) == ("\x1b" in printed) == (environment.get("TERM") != "dumb")
    width = 40 if environment.get("COLUMNS") == "40" else 80
    assert all(len(line) <= width for line in drawn if "train" not in line)
    if "NO_COLOR" in environment:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", printed)


def test_a_notebook_gets_lines_on_its_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one HTML output a line, for which rich would need IPython."""
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    assert Console().is_jupyter  # so the shell is convincing
    two_epochs(Terminal(soft_wrap=True))
    assert capsys.readouterr().out == TWO_LINES


# The bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def test_the_bar_says_that_it_compiles_until_the_first_numbers_come(clock: SimpleNamespace) -> None:
    terminal, _ = opened(terminal=True)
    bar = Bar(terminal, 3, 100, 0, 0)
    assert re.fullmatch(r"epoch 1/3 [━╸╺ ]+ compiling", frame(bar))
    clock.now += 60
    bar.step(10, seen(10))
    assert re.fullmatch(r"epoch 1/3 [━╸╺ ]+ loss 2\.0000  25\.00%", frame(bar))
    clock.now += 2
    bar.step(30, seen(30))  # 20 images in 2 s; 270 are left
    assert frame(bar).endswith(" loss 2.0000  25.00%  10 images/s  0:27 left")
    bar.epoch(SMALL._replace(epoch=1), is_best=False)
    assert re.fullmatch(r"epoch 2/3 [━╸╺ ]+", frame(bar))
    bar.show_compiling()  # as where another stage begins to train
    assert frame(bar).endswith(" compiling")
    clock.now += 60
    bar.step(10, seen(10))
    clock.now += 1
    bar.step(20, seen(20))  # 10 images in 1 s; 180 are left
    assert frame(bar).endswith(" 10 images/s  0:18 left")


def test_a_resumed_epochs_bar_stands_where_the_run_stands(clock: SimpleNamespace) -> None:
    terminal, screen = opened(terminal=True)
    with Bar(terminal, epochs=5, images=100, done=2, behind=50) as bar:
        (task,) = bar._bar.tasks
        assert (task.completed, task.total, task.visible) == (50, 100, True)
        assert plain(screen.getvalue()).startswith("epoch 3/5 ")
        bar.step(25, seen(25))
        assert (task.completed, task.total) == (75, 100)
        clock.now += 5
        bar.step(50, seen(50))  # 25 images in 5 s; 200 are left
        assert (task.completed, task.fields["numbers"]) == (100, "loss 2.0000  25.00%  5 images/s  0:40 left")


def test_an_epoch_that_is_one_call_has_its_time_left_from_the_second_on(clock: SimpleNamespace) -> None:
    """On an accelerator; the first call compiles."""
    terminal, _ = opened(terminal=True)
    bar = Bar(terminal, 10, 1000, 0, 0)
    clock.now += 30
    bar.step(1000, seen(1000))
    clock.now += 1  # validation
    bar.epoch(SMALL._replace(epoch=1), is_best=True)
    clock.now += 4
    bar.step(1000, seen(1000))
    assert frame(bar).endswith(" 250 images/s  0:40 left")  # 8 epochs of 5 s


@pytest.mark.parametrize("width", [80, 100, 40, 20, 1])
def test_the_bar_is_one_line_of_any_terminal(width: int, clock: SimpleNamespace) -> None:
    terminal, _ = opened(terminal=True)
    bar = Bar(terminal, 2000, 1_000_000, 1233, 0)
    bar.step(1, seen(1, 12.3456))
    clock.now += 999_999 / 1_234_567
    bar.step(1_000_000, Metrics(12_345_600.0, 1e6, 1e6))
    drawn = frame(bar, width)
    assert len(drawn) <= width
    assert "\n" not in drawn
    if width >= 80:
        assert drawn.startswith("epoch 1234/2000 ━")
        assert drawn.endswith(" loss 12.3456  100.00%  1,234,567 images/s  10:21 left")


@pytest.mark.parametrize("done", [2, 3])
def test_no_bar_is_of_an_epoch_that_there_is_not(done: int) -> None:
    """A run that had trained to its end, or just has, and reads the test set next."""
    terminal, screen = opened(terminal=True)
    with Bar(terminal, 3, 100, done, 0) as bar:
        if done == 2:
            bar.epoch(SMALL._replace(epoch=3), is_best=True)
        assert frame(bar).strip() == ""
    assert "4/3" not in screen.getvalue()


# Names


HARD_NAMES = ["with [red]markup[/]", "a:on:b :smile:", "[/]", "back\\", "[link=x]y"]


@pytest.mark.parametrize("name", HARD_NAMES)
def test_names_are_printed_as_they_are(name: str) -> None:
    terminal, screen = opened(terminal=False)
    print_turn(terminal, 3, 8, name)
    assert screen.getvalue() == f"run 3 of 8: {name}\n"
    dataset = replace(load_dataset(TINY.data, input_size=8, in_channels=1, seed=0), name=name)
    print_start(terminal, Path(name), TINY, dataset, [("fc1", 3, True)])
    assert f"{Path(name)}: {name}, 10 classes, " in screen.getvalue()
    summary = {
        **dict.fromkeys(("test_accuracy", "balanced_accuracy", "test_loss", "seconds", "images_per_second"), 1.0),
        **dict.fromkeys(("best_epoch", "epochs", "trainable_parameters", "total_parameters", "seed"), 1),
        "name": name,
        "dataset": name,
        "stopped": name,
        **dict.fromkeys(("val_accuracy", "top5_accuracy", "calibration_error", "temperature")),
    }
    terminal.print(results_table(summary))
    assert f"{name}: {name}, seed 1" in re.sub(r"\s+", " ", screen.getvalue())


def test_a_terminal_without_a_width_is_printed_on() -> None:
    for columns in ("0", "1", "40"):
        terminal, screen = opened(terminal=False, COLUMNS=columns)
        terminal.print(
            "a long line of text that is not broken wherever it is printed, at any width whatever", width=None
        )
        assert screen.getvalue().startswith("a long line of text that is not broken wherever it is printed, at any")
    table = Table("run")
    table.add_row("name")
    terminal, screen = opened(terminal=False, COLUMNS="0")
    terminal.print(table)
    assert "name" in screen.getvalue()


def test_of_many_classes_the_smallest_and_largest_are_counted() -> None:
    counts = np.r_[50:20:-1]
    names = tuple(f"class{i}" for i in range(30))
    labels = np.repeat(np.arange(30), counts)
    split = Split(np.zeros((len(labels), 8, 8, 3), np.uint8), labels)
    dataset = Dataset("many", split, None, split, names, STANDARDISATION)
    small = [f"class{i} {counts[i]}" for i in range(29, 19, -1)]
    large = [f"class{i} {counts[i]}" for i in range(9, -1, -1)]
    told = display._class_counts(dataset)
    assert told == f"training images by class (the 20 smallest and largest): {', '.join(small + large)}"
