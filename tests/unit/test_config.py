"""Settings: where they come from, and what is said of a bad one."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from triage.config import Config, without_password
from triage.errors import ConfigError

ROOT = Path(__file__).parents[2]


def said(environment: dict[str, str], folder: Path) -> str:
    """The one line that a bad setting gets."""
    with pytest.raises(ConfigError) as caught:
        Config.read(environment, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    """A ``triage.toml``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "triage.toml"
    file.write_text(text, "utf-8")
    return file


def test_without_settings_everything_has_a_default(tmp_path: Path) -> None:
    """The defaults listen on loopback and write under one folder."""
    config = Config.read({}, tmp_path)
    assert config == Config()
    assert (config.ae_title, config.dicom_host, config.dicom_port) == ("TRIAGE", "127.0.0.1", 11112)
    assert config.home == Path.cwd() / "triage-home"
    assert config.outside_population == "not_scored"
    for folder in (config.spool_folder, config.models_folder, config.locks_folder):
        assert folder.parent == config.home
    assert config.worklist_url == f"sqlite:///{config.home / 'worklist.sqlite'}"


def test_a_variable_beats_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    """Each setting for itself."""
    write(tmp_path, 'ae_title = "FILE"\ndicom_port = 1104\n')
    config = Config.read({"TRIAGE_DICOM_PORT": "2104"}, tmp_path)
    assert (config.ae_title, config.dicom_port, config.web_port) == ("FILE", 2104, 8080)


def test_the_file_is_the_named_one_else_the_folder_s_else_the_home_s(tmp_path: Path) -> None:
    """Only one file is read."""
    home = tmp_path / "home"
    write(home, 'ae_title = "HOME"\nweb_port = 1\n')
    environment = {"TRIAGE_HOME": str(home)}
    assert Config.read(environment, tmp_path).ae_title == "HOME"
    write(tmp_path, 'ae_title = "FOLDER"\n')
    folder = Config.read(environment, tmp_path)
    assert (folder.ae_title, folder.web_port) == ("FOLDER", 8080)
    named = write(tmp_path / "etc", 'ae_title = "NAMED"\n')
    assert Config.read({**environment, "TRIAGE_CONFIG": str(named)}, tmp_path).ae_title == "NAMED"


def test_other_variables_are_not_ours(tmp_path: Path) -> None:
    """Whatever else the environment holds."""
    assert Config.read({"PATH": "x", "TRIAG": "x", "HOME": "/"}, tmp_path) == Config()


def test_the_home_is_absolute_and_may_start_with_a_tilde(tmp_path: Path) -> None:
    """It does not move when the process changes its folder."""
    home = Config.read({"TRIAGE_HOME": "~/triage"}, tmp_path).home
    assert home == Path(os.path.expanduser("~")) / "triage"  # noqa: PTH111


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("TRIAGE_DICOM_PORT", "70000", "less than or equal to 65535"),
        ("TRIAGE_DICOM_PORT", "-1", "greater than or equal to 0"),
        ("TRIAGE_DICOM_PORT", "abc", "valid integer"),
        ("TRIAGE_DICOM_PORT", "", "valid integer"),
        ("TRIAGE_WEB_PORT", "80.5", "valid integer"),
        ("TRIAGE_LOG_FORMAT", "xml", "'console' or 'json'"),
        ("TRIAGE_OUTSIDE_POPULATION", "ignore", "'not_scored' or 'warn'"),
        ("TRIAGE_AE_TITLE", "SEVENTEEN-LETTERS", "1 to 16"),
        ("TRIAGE_AE_TITLE", "A\\B", "backslash"),
        ("TRIAGE_AE_TITLE", "A\nB", "printable"),
        ("TRIAGE_AE_TITLE", "RÖNTGEN", "ASCII"),
        ("TRIAGE_AE_TITLE", "   ", "1 to 16"),
        ("TRIAGE_DICOM_HOST", "", "at least 1"),
        ("TRIAGE_MAX_ASSOCIATIONS", "0", "greater than or equal to 1"),
        ("TRIAGE_IDLE_SECONDS", "0", "greater than 0"),
        ("TRIAGE_IDLE_SECONDS", "nan", "finite"),
        ("TRIAGE_IDLE_SECONDS", "inf", "finite"),
        ("TRIAGE_HOME", "~no-such-user-here/x", "home"),
    ],
)
def test_a_bad_value_is_named_in_one_line(
    variable: str, value: str, problem: str, tmp_path: Path
) -> None:
    """With the setting, the problem and what it got."""
    line = said({variable: value}, tmp_path)
    assert line.startswith(f"bad value for {variable}: ")
    assert problem in line
    assert repr(value) in line


def test_a_bad_value_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    """There may be several."""
    file = write(tmp_path, "web_port = 70000\n")
    assert said({}, tmp_path).startswith(f"bad value for web_port in {file}: ")


@pytest.mark.parametrize("title", ["A", "SIXTEEN-LETTERS.", " TRIAGE "])
def test_an_ae_title_has_1_to_16_characters(title: str, tmp_path: Path) -> None:
    """Spaces around it do not count (PS3.5 6.2)."""
    assert Config.read({"TRIAGE_AE_TITLE": title}, tmp_path).ae_title == title.strip()


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    """A misspelt setting is not one that was set."""
    line = said({"TRIAGE_DICOM_PROT": "104"}, tmp_path)
    assert line.startswith("unknown setting TRIAGE_DICOM_PROT in the environment; known: ")
    assert "TRIAGE_DICOM_PORT" in line


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    """Tables, too."""
    file = write(tmp_path, "dicom_prot = 104\n")
    line = said({}, tmp_path)
    assert line.startswith(f"unknown setting dicom_prot in {file}; known: ")
    assert "dicom_port" in line
    write(tmp_path, "[dicom]\nport = 104\n")
    assert said({}, tmp_path).startswith(f"unknown setting dicom in {file}; ")


@pytest.mark.parametrize(
    "content", [b"dicom_port: 104", b"= 1", b"\xff\xfe", b"a = 1\na = 2", b"["]
)
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    """With where it stops being TOML."""
    file = tmp_path / "triage.toml"
    file.write_bytes(content)
    assert said({}, tmp_path).startswith(f"configuration file {file} is not TOML: ")


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """The default ones need not."""
    file = tmp_path / "missing.toml"
    line = said({"TRIAGE_CONFIG": str(file)}, tmp_path)
    assert line == f"configuration file {file} cannot be read: No such file or directory"
    line = said({"TRIAGE_CONFIG": str(tmp_path)}, tmp_path)
    assert line == f"configuration file {tmp_path} cannot be read: Is a directory"


SECRET = "s3cr-et"
URLS = [
    f"postgresql://reader:{SECRET}@db/triage",
    f"postgresql+psycopg://reader:{SECRET}@db:5432/triage?sslmode=require",
    f"postgresql://reader:a/{SECRET}@b@db/triage",
    f"postgresql://reader@db/triage?password={SECRET}",
    f"postgresql://reader:{SECRET}@db/triage?sslmode=require&sslpassword={SECRET}",
    f"postgresql:///triage?user=reader&password={SECRET}@x",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "other", [{}, {"TRIAGE_WEB_PORT": "x"}, {"TRIAGE_DATABASE_ULR": ""}, {"TRIAGE_CONFIG": "none"}]
)
def test_a_password_is_never_shown(url: str, other: dict[str, str], tmp_path: Path) -> None:
    """Neither among the settings nor in an error about another one."""
    environment = {"TRIAGE_DATABASE_URL": url, **other}
    if other:
        assert SECRET not in said(environment, tmp_path)
    else:
        shown = Config.read(environment, tmp_path).shown()
        assert SECRET not in str(shown)
        assert "reader" in shown["TRIAGE_DATABASE_URL"]
        assert "***" in shown["TRIAGE_DATABASE_URL"]


def test_a_password_in_a_bad_url_is_never_shown(tmp_path: Path) -> None:
    """Nor under a misspelt name."""
    write(tmp_path, f'database_url = ["{URLS[0]}"]\n')
    assert SECRET not in said({}, tmp_path)
    write(tmp_path, f'database_ulr = "{URLS[0]}"\n')
    assert SECRET not in said({}, tmp_path)
    assert SECRET not in said({"TRIAGE_DATABASE_ULR": URLS[0]}, tmp_path)


@pytest.mark.parametrize(
    "url",
    ["sqlite:////var/lib/triage/worklist.sqlite", "postgresql://db/triage", "postgresql://u@db"],
)
def test_a_url_without_a_password_is_shown_whole(url: str) -> None:
    """Nothing is hidden that is no secret."""
    assert without_password(url) == url


def test_everything_is_shown_by_its_variable() -> None:
    """So what is shown can be set."""
    shown = Config().shown()
    assert set(shown) == {f"TRIAGE_{name.upper()}" for name in Config.model_fields}
    assert shown["TRIAGE_DATABASE_URL"] == Config().worklist_url


def test_a_configuration_does_not_change() -> None:
    """It is a value."""
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.dicom_port = 104  # type: ignore[misc]
    assert config.dicom_port == 11_112


def test_every_setting_is_documented() -> None:
    """In docs/configuration.md, with its variable, its default and nothing that is not one."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    documented = set(re.findall(r"\bTRIAGE_[A-Z_]+\b", page)) - {"TRIAGE_CONFIG"}
    assert documented == {f"TRIAGE_{name.upper()}" for name in Config.model_fields}
