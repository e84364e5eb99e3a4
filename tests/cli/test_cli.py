import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import blobs, write_idx
from PIL import Image

import thinned
from thinned.cli.main import main, parse
from thinned.core.config import Config, flag, options


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, errors = capsys.readouterr()
    return code, out, errors


def refused(capsys, *words: object, code: int = 2) -> str:
    """The one line that a wrong request gets."""
    got, _, errors = run(capsys, *words)
    assert got == code, errors
    assert errors.count("\n") == 1
    assert errors.startswith("thinned: ")
    assert "Traceback" not in errors
    return errors


# One network, one batch size, one program: most of a test's time would be compilation.
SAME = ("--model", "mlp", "--mlp.hidden", "16", "--batch-size", "16")


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    words = ["train", *SAME, "--data.path", str(tiny_data), "--epochs", "2"]
    assert main([*words, "--runs", str(folder), "--name", "one", "--quiet"]) == 0
    return folder / "one"


def test_training_tells_one_line_an_epoch_and_what_to_do_next(capsys, tiny_data, tmp_path):
    code, out, errors = run(
        capsys, "train", *SAME, "--data.path", tiny_data, "--epochs", 2, "--runs", tmp_path
    )
    assert (code, errors) == (0, "")
    assert re.findall(r"^epoch (\d)/2: train loss .*, test loss .* accuracy", out, re.M) == [
        "1",
        "2",
    ]
    folder = next(tmp_path.iterdir())
    assert f"thinned evaluate {folder}" in out
    assert f"thinned train --resume {folder} --epochs 4" in out
    assert "on all 77 images" in out


def test_quiet_training_says_nothing(capsys, tiny_data, tmp_path):
    words = ["train", *SAME, "--data.path", tiny_data, "--epochs", 1, "--runs", tmp_path]
    assert run(capsys, *words, "--quiet") == (0, "", "")


def test_a_finished_run_says_so_and_grows_when_asked(capsys, trained):
    code, out, _ = run(capsys, "train", "--resume", trained)
    assert code == 0
    assert "is finished: 2 epochs" in out
    code, out, _ = run(capsys, "train", "--resume", trained, "--epochs", 3)
    assert "resuming" in out
    assert "epoch 3/3" in out


def test_a_runs_own_config_repeats_it(capsys, trained, tmp_path):
    code, _, _ = run(
        capsys, "train", "-c", trained / "config.json", "--runs", tmp_path, "--name", "again"
    )
    assert code == 0
    assert (tmp_path / "again" / "config.json").read_text() == (trained / "config.json").read_text()


def test_flags_override_the_file_and_the_file_the_recipe(capsys, tiny_data, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("recipe: tutorial-as-printed\nbatch_size: 16\nepochs: 5\n")
    words = ["train", "-c", file, "--epochs", 1, "--data.path", tiny_data, "--runs", tmp_path]
    assert run(capsys, *words, "--name", "r", "--quiet")[0] == 0
    from thinned import Run

    config = Run.open(tmp_path / "r").config
    assert (config.epochs, config.batch_size, config.learning_rate) == (1, 16, 0.1)
    assert config.randomness.dropout == "frozen"


def test_evaluation_tells_loss_accuracy_and_every_class(capsys, trained, tiny_data):
    code, out, _ = run(capsys, "evaluate", trained)
    assert code == 0
    assert re.search(r"accuracy      [\d.]+% \(.*\), \d+ of 77 images", out)
    assert re.search(r"loss          \d\.\d+ nats", out)
    # A row in the table of classes, and one in the confusion matrix.
    assert re.findall(r"^(\d) ", out, re.M) == ["0", "1", "2"] * 2
    assert run(capsys, "evaluate", trained, "--data.path", tiny_data)[1] == out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--dropout.rate", "1.5"], "--dropout.rate is 1.5: must be a number from 0 to 1"),
        (["train", "--dropout.sites", "Nope", "0.3"], "no such site, but Dropout_0"),
        (["train", "--dropout.sites", "Dropout_0", "2"], "--dropout.sites Dropout_0 is 2.0"),
        (["train", "--dropout.sites", "Dropout_0"], "--dropout.sites"),
        (["train", "--dropout.kind", "path"], "drops residual branches, and model cnn has none"),
        (["train", "--dropout.kind", "blok"], "block"),
        (["train", "--dropout.schedule", "late"], "late needs --dropout.schedule-epochs"),
        (["train", "--dropout.schedule-epochs", "2"], "has no --dropout.schedule-epochs"),
        (["train", "--dropout.kind", "concrete", "--dropout.rate", "1"], "between 0 and 1"),
        (
            ["train", "--dropout.kind", "concrete", "--dropout.sites", "Dropout_0", "0.3"],
            "concrete learns its rates",
        ),
        (["doctor", "/nowhere"], "/nowhere is no run folder"),
        (["doctor", "/nowhere", "--draws", "3"], "--draws is 3: must be at least 8"),
        (["train", "--dropout.rate", "nan"], "--dropout.rate is nan"),
        (["train", "--learning-rate", "nan"], "--learning-rate is nan"),
        (["train", "--learning-rate", "-1"], "--learning-rate is -1"),
        (["train", "--epochs", "x"], "--epochs"),
        (["train", "--epochs", "0"], "--epochs is 0"),
        (["train", "--dropout.rat", "1"], "did you mean --dropout.rate"),
        (["train", "--foo"], "--foo"),
        (["train", "--recipe", "tutorail"], "did you mean 'tutorial'"),
        (["train", "--randomness.dropout", "x"], "step"),
        (["train", "--data.path", "/nowhere"], "data /nowhere does not exist"),
        (["train", "-c", "/nowhere.yaml"], "cannot read config /nowhere.yaml"),
        (["train", "--resume", "/nowhere"], "/nowhere is no run folder"),
        (["train", "--batch-size", "100000"], "larger than the 60000 training images"),
        (["train", "--data.validation", "60000"], "leaves none"),
        (["evaluate", "/nowhere"], "/nowhere is no run folder"),
        (["evaluate"], "no run is given"),
        (["verify-resume", "--kills", "0"], "--kills is 0"),
        (["trian", "--epochs", "3"], "no command 'trian'; did you mean thinned train?"),
        (["resume", "runs/x"], "did you mean thinned train --resume FOLDER?"),
        (["frobnicate"], "no command 'frobnicate'; see thinned --help"),
        ([], "train, evaluate"),
    ],
)
def test_a_wrong_request_gets_one_line_and_code_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_config_is_refused(capsys, trained):
    message = refused(capsys, "train", "--resume", trained, "--seed", "1")
    assert "--seed: was 0, asked for 1" in message
    words = ["train", "--runs", trained.parent, "--name", trained.name]
    assert "run of another config" in refused(capsys, *words)


def test_evaluating_on_images_of_another_size_is_refused(capsys, trained, tmp_path):
    write_idx(tmp_path, blobs(20, 0, size=9), blobs(9, 1, size=9))
    message = refused(capsys, "evaluate", trained, "--data.path", tmp_path)
    assert "images are (9, 9, 1)" in message


def test_a_run_whose_config_is_damaged_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "neither YAML nor JSON" in refused(capsys, "evaluate", tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(capsys, tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["train", "--data.path", tiny_data, "--runs", tmp_path / "file"]
    assert "cannot make run folder" in refused(capsys, *words)


def test_divergence_is_a_failure_not_a_wrong_request(capsys, tiny_data, tmp_path):
    words = ["train", *SAME, "--data.path", tiny_data, "--runs", tmp_path]
    assert "not finite at step" in refused(capsys, *words, "--learning-rate", "1e30", code=1)


def test_what_nobody_foresaw_gets_one_line_and_a_traceback_only_on_demand(capsys, monkeypatch):
    from thinned.runs import train as runs

    def fail(*args, **kwargs):
        raise ZeroDivisionError("of a\nkind")

    monkeypatch.setattr(runs, "train", fail)
    assert "unexpected ZeroDivisionError: of a kind" in refused(capsys, "train", code=1)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--debug"])


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_help_shows_every_option_and_imports_no_jax():
    found = python(
        "-c",
        "import sys, thinned.cli.main\n"
        "try: thinned.cli.main.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print('JAX' if 'jax' in sys.modules else 'clean')",
    )
    assert found.stdout.rstrip().endswith("clean")
    for name, _, _ in options(Config()):
        assert flag(name) in found.stdout


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_later(tiny_data, tmp_path):
    """A limit on file size stands in for a full disk: it cuts off the checkpoint."""
    words = [
        "train",
        *SAME,
        "--data.path",
        str(tiny_data),
        "--epochs",
        "2",
        "--runs",
        str(tmp_path),
    ]
    words += ["--name", "r", "--mlp.hidden", "200"]
    code = f"""if True:
        import resource, signal, sys; from thinned.cli.main import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        sys.exit(main({words}))"""
    failed = python("-c", code)
    assert failed.returncode == 1, failed.stderr
    assert "cannot save checkpoint" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-c", "{file}", "--recipe", "tutorial-as-printed"], ("frozen", 8, 0.1)),
        (["-c", "{file}"], ("step", 8, 0.001)),
        (["-c{file}", "--recipe=tutorial-as-printed"], ("frozen", 8, 0.1)),
        (["--config={file}", "--batch-size", "4"], ("step", 4, 0.001)),
        (["--recipe", "tutorial-as-printed", "--learning-rate", "1"], ("frozen", 32, 1.0)),
        (["--recipe", "tutorial"], ("step", 32, 0.001)),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "train",
        "study",
        *(pytest.param(c, marks=pytest.mark.long) for c in ("find-lr", "verify-resume")),
    ],
)
def test_recipe_lies_under_the_file_and_the_file_under_the_flags(
    tmp_path, command, words, expected
):
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 8\n")
    config = parse([command, *(word.format(file=file) for word in words)]).config
    assert (config.randomness.dropout, config.batch_size, config.learning_rate) == expected
    assert config.recipe == ("tutorial-as-printed" if expected[0] == "frozen" else "tutorial")


def test_a_flag_can_name_another_recipe_than_the_file_and_pictures_follow_one(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("recipe: tutorial-as-printed\n")
    assert parse(["train", "-c", str(file), "--recipe", "tutorial"]).config == Config()
    shown = parse(["data", "show", "--recipe", "tutorial-as-printed"]).action.config
    assert shown.randomness.shuffle == "frozen"


def test_resuming_ignores_nothing_that_is_given(capsys, trained):
    for words in (["-c", trained / "config.json"], ["--name", "other"], ["--runs", "x"]):
        message = refused(capsys, "train", "--resume", trained, *words)
        assert "--resume names the run, which has its own config: leave out" in message


def test_the_version_is_told(capsys):
    assert run(capsys, "--version") == (0, f"thinned {thinned.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "buffer"),
    [("--version", ""), ("--version", "1"), ("train --help", ""), ("models --channels 1", "1")],
)
def test_an_output_that_is_full_is_told_in_one_line(words, buffer):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "thinned", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": buffer},
        )
    assert done.returncode == 1
    assert done.stderr == "thinned: cannot write to the output: No space left on device\n"


def test_an_output_that_is_closed_is_told_before_the_work():
    command = ["sh", "-c", 'exec "$0" -m thinned train --data /nowhere >&-', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "thinned: cannot write to the output: it is closed\n"


def test_notes_are_no_part_of_json_and_quiet_means_quiet(capsys, trained, tmp_path):
    """Newest checkpoint damaged, versions changed: both are worth a word, but not in there."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    newest = max((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    code, out, errors = run(capsys, "evaluate", copy, "--format", "json")
    assert code == 0
    assert isinstance(json.loads(out), dict)
    assert "using the one before it" in errors
    environment = json.loads((copy / "environment.json").read_text())
    environment["packages"]["jax"] = "0"
    (copy / "environment.json").write_text(json.dumps(environment))
    assert run(capsys, "train", "--resume", copy, "--quiet") == (0, "", "")


@pytest.mark.parametrize("word", ["-m thinned train --help", "-m thinned evaluate --help"])
def test_help_of_each_command_ends_well(word):
    assert python(*word.split()).returncode == 0


def test_the_progress_bar_shows_speed_and_time_left(tiny_data, tmp_path):
    """In a real terminal, 100 columns wide."""
    import pty

    main_end, other_end = pty.openpty()
    words = ["-m", "thinned", "train", *SAME, "--data.path", str(tiny_data), "--epochs", "5"]
    process = subprocess.Popen(
        [sys.executable, *words, "--runs", str(tmp_path)],
        stdout=other_end,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(other_end)
    shown = b""
    try:
        while block := os.read(main_end, 65536):
            shown += block
    except OSError:
        # The terminal closes with the process.
        pass
    process.wait()
    os.close(main_end)
    assert re.search(rb"[\d,]+ images/s .*\d:\d\d:\d\d", shown)
    assert b"epoch 5/5" in shown


def test_names_of_files_are_told_in_one_line_and_pipes_are_not_waited_for(
    capsys, trained, tmp_path
):
    Image.new("L", (8, 8)).save(tmp_path / "a\n\x1b[1m.png")
    (tmp_path / "b\n.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    code, out, errors = run(capsys, "predict", trained, tmp_path)
    assert code == 1
    assert out.splitlines()[1].endswith(r"a\n\x1b[1m.png")
    assert len(out.splitlines()) == 2
    assert re.search(r"^\S+b\\n\.png: no image of a format", errors, re.M)
    assert re.search(r"^\S+pipe\.png: not a regular file$", errors, re.M)
    assert errors.count("\n") == 3
    code, out, _ = run(capsys, "predict", trained, tmp_path, "--format", "json")
    assert json.loads(out.splitlines()[0])["path"].endswith("a\n\x1b[1m.png")


def test_names_are_written_in_whatever_the_terminal_can_show(tmp_path):
    for name in ("日本", "é"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("L", (8, 8), index).save(tmp_path / "d" / name / f"{index}.png")
    command = [sys.executable, "-m", "thinned", "data", "inspect", "d"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert rb"\u65e5\u672c" in done.stdout
    # A path that could not be saved in config.json is refused before there is a run's folder.
    os.rename(tmp_path / "d", os.fsencode(tmp_path) + b"/d\xff")
    words = [*command[:3], "train", "--data", b"d\xff"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert rb"d\xff cannot be saved in a run" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000, "a\u202eb"])
def test_names_of_any_length_and_direction_are_told_in_one_short_line(capsys, tmp_path, name):
    for words in (("predict", name), ("train", "--resume", name), ("train", "--data", name)):
        told = refused(capsys, *words)
        assert "unexpected" not in told
        assert len(told) < 1200
        assert "\u202e" not in told
