"""The wheel, installed where the checkout is not: what is in it, and that its programs work."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import jaxcnn

ROOT = Path(__file__).parent.parent
DATA = ("pretrained", "runs/templates", "studies/templates")
SMALL = shlex.split(
    "--data.name digits --data.augment none --data.fraction 0.2 --train.epochs 1 --train.batch-size 64 "
    "--model.input-size 8 --model.in-channels 1 --model.num-blocks 1 --model.hidden-dims 4 8 4 "
    "--model.layers-per-block 1 --model.apply-pooling 1 --model.apply-bn 1"
)


def run(*words: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, and that from a copy: builds leave folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("jaxcnn", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"jaxcnn", f"jaxcnn-{jaxcnn.__version__}.dist-info"}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxcnn").rglob("*.py")}
    data = {str(path.relative_to(ROOT)) for folder in DATA for path in (ROOT / "jaxcnn" / folder).glob("*")}
    assert {name for name in names if name.startswith("jaxcnn/")} == code | data | {"jaxcnn/py.typed"}


@pytest.mark.slow
def test_the_installed_programs_train_beside_an_experiments_folder_of_the_users(wheel: Path, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python, program = environment / "bin" / "python", environment / "bin" / "jaxcnn"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of this environment. A path in a .pth file has its own .pth files ignored, so that an
    # editable installation of the checkout is not seen.
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (elsewhere / "experiments").mkdir(parents=True)
    (elsewhere / "experiments" / "__init__.py").write_text("raise RuntimeError('the user has this, not the program')")

    assert run(program, "--version", cwd=elsewhere) == f"jaxcnn {jaxcnn.__version__}\n"
    where = run(python, "-c", "import jaxcnn; print(jaxcnn.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(environment)
    assert run(program, "train", "--help", cwd=elsewhere).startswith("usage: jaxcnn train ")
    run(program, "train", *SMALL, cwd=elsewhere)
    assert {"model.pth", "summary.json", "curves.png", "report.html"} <= {
        path.name for path in (elsewhere / "runs/digits").iterdir()
    }
    run(python, "-m", "jaxcnn", "convert", "runs/digits/model.pth", "digits.safetensors", cwd=elsewhere)
    assert (elsewhere / "digits.safetensors").is_file()
    run(program, "publish", "--model", "runs/digits", "published", cwd=elsewhere)
    assert (elsewhere / "published" / "README.md").is_file()
