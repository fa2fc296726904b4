"""Whether a profile names a region, as botocore reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from simplu_worker.aws.credentials import names_region

WORK = "[profile work]\nregion = eu-west-3\n"


@pytest.mark.parametrize(
    ("config", "profile", "expected"),
    [
        ("[default]\noutput = json\n", None, False),
        ("[default]\nregion = eu-west-3\n", None, True),
        (WORK, None, False),
        (WORK, "work", True),
        (WORK, "missing", True),
        ("region = eu-west-3\n", None, True),
    ],
)
def test_region_is_that_of_the_profile(
    config: str, profile: str | None, *, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert names_region(profile) is expected
