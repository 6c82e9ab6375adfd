"""verl's attributes are what reasonrl was written against; another version fails by name."""

from importlib import metadata

import pytest

from reasonrl.engine.verl import seams


def test_every_seam_has_the_signature_and_source_it_was_written_against() -> None:
    assert list(seams.drift()) == []


def test_a_changed_signature_and_a_vanished_attribute_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    good = seams.SEAMS[0]
    changed = seams.Seam(good.path, "extend", "self, config, surprise", good.digest)
    edited = seams.Seam(good.path, "extend", good.parameters, "0" * 12)
    gone = seams.Seam("verl.workers.utils.losses:no_such_loss", "call", "", "")
    monkeypatch.setattr(seams, "SEAMS", (changed, edited, gone))
    first, second, third = seams.drift()
    assert "surprise" in first
    assert "source of" in second
    assert "no_such_loss is gone" in third


def test_another_version_of_verl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.10.0")
    monkeypatch.setattr(seams, "SEAMS", ())
    with pytest.raises(seams.SeamDrift, match=r"written for verl 0\.9\.1, found 0\.10\.0"):
        seams.check_seams()
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.1")
    seams.check_seams()
