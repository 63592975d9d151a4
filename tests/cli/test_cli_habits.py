"""What a user expects of any command: quick help, JSON, verbosity, completion, Ctrl-C and closed pipes."""

import ast
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import ddcm_fast
from ddcm_fast import codebook, codec, models, sampling
from ddcm_fast.cli import main
from ddcm_fast.cli.command import COMMANDS, build_parser

#: A file of every preset.
GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "files").glob("*.ddcm"))

MODEL = ["--model", "gaussian-field", "--preset", "ddcm", "-T", "2", "-K", "16"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save("a.png")
    return tmp_path


def python(code, *args, **how):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, **how).stdout


# ---- what is imported when -------------------------------------------------------------------------


_IMPORTED = """
import sys
from ddcm_fast.cli import main
try:
    assert main(sys.argv[1:]) == 0
except SystemExit as stop:
    assert stop.code == 0
print([name for name in ("torch", "numpy", "PIL", "diffusers") if name in sys.modules])
"""


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_imports_neither_torch_nor_numpy_nor_pillow(words):
    out = python(_IMPORTED, *words)
    assert out.startswith("usage: ddcm") and out.splitlines()[-1] == "[]"
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.stem)
def test_info_imports_neither_torch_nor_numpy_nor_pillow(file):
    out = python(_IMPORTED, "info", str(file), "--json").splitlines()
    assert json.loads(out[0])["bytes"] == file.stat().st_size and out[1] == "[]"


@pytest.mark.parametrize("package", [ddcm_fast, codebook, codec, models, sampling], ids=lambda p: p.__name__)
def test_public_names_are_those_that_type_checkers_see(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    assert {*seen, "__version__"} == {*package.__all__, "__version__"}
    assert set(package.__all__) <= set(dir(package))
    for name, module in seen.items():
        home = __import__(module, fromlist=[name])
        assert getattr(package, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018
    own = {name for name, value in vars(package).items() if isinstance(value, types.ModuleType)}
    assert own & set(package.__all__) <= {"container"}, "a module that takes a public name"


# ---- what is said ----------------------------------------------------------------------------------


def test_json(folder, capsys):
    assert main(["compress", "a.png", "a.ddcm", *MODEL, "--json", "-q"]) == 0
    said = json.loads(capsys.readouterr().out)
    size = (folder / "a.ddcm").stat().st_size
    assert said["bytes"] == size and said["bpp"] == size / 32 and said["evaluations"] == 2 and said["psnr"] > 5
    assert main(["info", "a.ddcm", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == size and said["width"] == 16 and said["config"]["K"] == 16 and said["condition"] is None


def test_json_of_conditions(folder, capsys):
    Image.linear_gradient("L").resize((8, 8)).save("digit.png")
    base = ["compress", "digit.png", "a.ddcm", "--model", "digits", *MODEL[2:], "--label", "7", "-q"]
    for more, condition in (([], {"label": 7}), (["--withhold-condition"], {"hash"})):
        assert main([*base, *more]) == 0
        assert main(["info", "a.ddcm", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["condition"]
        assert set(said) == condition if isinstance(condition, set) else condition.items() <= said.items()


def test_verbose(folder, capsys):
    assert main(["compress", "a.png", "a.ddcm", *MODEL, "-v", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert "model gaussian-field on cpu" in err and "K 16" in err and "backend" in err
    assert main(["compress", "a.png", "a.ddcm", *MODEL]) == 0
    assert capsys.readouterr().err == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and ddcm_fast.__version__ in out and torch.__version__ in out and "reference" in out


def test_completion(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", types.SimpleNamespace(complete=lambda parser, shell: f"{shell} script"))
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "zsh"])
    assert stop.value.code == 0 and capsys.readouterr().out == "zsh script\n"
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 2
    assert "ddcm-fast[completion]" in capsys.readouterr().err


def test_the_parser_knows_all_commands_or_only_one():
    whole, one = build_parser(), build_parser(["info"])
    for name in COMMANDS:
        assert f"usage: ddcm {name}" in whole._subparsers._group_actions[0].choices[name].format_usage()
    choices = one._subparsers._group_actions[0].choices
    assert list(choices) == list(COMMANDS) and "--json" in choices["info"].format_help()
    assert "--json" not in choices["compress"].format_help()


def test_a_manual_page_leaves_no_line_out():
    """roff takes a line that begins with a point or an apostrophe for a request, and drops one it does not know."""
    commands = build_parser()._subparsers._group_actions[0].choices
    texts = [*COMMANDS.values()]
    for parser in commands.values():
        texts += [parser.description or "", parser.epilog or "", *(action.help or "" for action in parser._actions)]
    lines = [line.lstrip() for text in texts for line in text.splitlines()]
    assert len(lines) > 200 and [line for line in lines if line.startswith((".", "'"))] == []


# ---- how it ends -----------------------------------------------------------------------------------

_INTERRUPT = """
import sys, _thread
class Finder:  # as if Ctrl-C came while torch is imported
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            _thread.interrupt_main()
sys.meta_path.insert(0, Finder())
from ddcm_fast.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_while_torch_is_imported_is_one_line(folder):
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPT, "compress", "a.png", "a.ddcm"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ddcm: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_not_mentioned(folder):
    assert main(["compress", "a.png", "a.ddcm", *MODEL, "-q"]) == 0
    for words in (["info", "a.ddcm"], ["decompress", "a.ddcm", "-"]):
        command = [sys.executable, "-m", "ddcm_fast.cli", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141), words


@pytest.mark.parametrize(
    ("option", "given", "says"),
    [
        ("-K", "1e9", "argument -K: '1e9' is no integer; write it in digits"),
        ("-T", "many", "argument -T: 'many' is no integer"),
        ("--bpp", "a quarter", "argument --bpp: 'a quarter' is no number; give one"),
        ("--guidance-scale", "", "argument --guidance-scale: '' is no number"),
    ],
)
def test_what_is_no_number_is_said_with_what_is_one(option, given, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compress", "a.png", "a.ddcm", option, given])
    said = capsys.readouterr().err
    assert end.value.code == 2 and says in said and said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["info", "--help"]])
def test_help_that_cannot_be_written_is_no_success(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ddcm_fast.cli", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "ddcm: No space left on device\n")
