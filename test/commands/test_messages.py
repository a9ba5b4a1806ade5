"""What commands say: in the words of whoever typed them, whatever these are."""

from __future__ import annotations

import pytest

from ki_ros import cli


@pytest.mark.parametrize("name", ["nofile[a].yaml", "nofile[/a].yaml", "nofile[red].yaml", "nofile:cat:.yaml"])
def test_an_error_has_a_name_as_it_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", name])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("ki-ros: ")
    assert name in said
    assert len(said.splitlines()) == 1
