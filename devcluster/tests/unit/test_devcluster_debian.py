"""Programs of Debian's archive: from the PATH, else unpacked into the cache, else refused with the remedy."""

import os
import subprocess
from pathlib import Path

import pytest

from flotilla.errors import NotReady
from flotilla_devcluster import programs


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_program_of_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    _script(tmp_path / "promtool", "true")

    assert programs.find_debian("promtool", environ={"PATH": str(tmp_path)}) == tmp_path / "promtool"


def test_an_unpacked_program_is_found_again_without_a_download(tmp_path: Path) -> None:
    program = tmp_path / "flotilla" / "debian" / "usr" / "bin" / "promtool"
    program.parent.mkdir(parents=True)
    _script(program, "true")

    assert programs.find_debian("promtool", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)}) == program


def test_without_apt_the_error_names_the_program_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(NotReady, match="Install prometheus so that it is on the PATH"):
        programs.find_debian("prometheus", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)})


def test_old_package_lists_are_updated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    _script(
        tools / "apt-get",
        f'echo "$2" >> {calls}; [ "$2" != download ] || [ -e {tmp_path}/fresh ] || exit 100\n'
        f"[ $2 != update ] || touch {tmp_path}/fresh\n"
        "[ $2 != download ] || touch prometheus.deb",
    )
    _script(tools / "dpkg-deb", 'mkdir -p "$3/usr/bin"; touch "$3/usr/bin/prometheus"')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    found = programs.find_debian("prometheus", environ={"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)})

    assert found.exists()
    assert calls.read_text().split() == ["download", "update", "download"]


def test_prometheus_runs() -> None:
    done = subprocess.run(
        [programs.find_debian("prometheus"), "--version"],
        env=programs.debian_environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert "prometheus, version" in done.stdout + done.stderr
