from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from papyra import ActorSystem
from papyra.conf import Settings, settings
from papyra.exceptions import InvalidEnvironment, InvalidSetting, SettingsError, UnknownSetting
from papyra.persistence.backends.memory import InMemoryPersistence
from tests.actors import Echo, story


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPYRA_PERSISTENCE", raising=False)
    monkeypatch.delenv("PAPYRA_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(settings, "persistence", None)


async def life_is_recorded_in(store: InMemoryPersistence, **options: InMemoryPersistence) -> bool:
    async with ActorSystem(**options) as system:  # type: ignore[arg-type]
        system.spawn(Echo)
    return story(store) == ["ActorStarted", "ActorStopped"]


async def test_actors_persist_through_the_backend_of_the_settings(
    persistence: InMemoryPersistence,
) -> None:
    settings.persistence = persistence
    assert await life_is_recorded_in(persistence)


async def test_an_explicit_backend_comes_before_the_settings(
    persistence: InMemoryPersistence,
) -> None:
    settings.persistence = InMemoryPersistence()
    assert await life_is_recorded_in(persistence, persistence=persistence)


async def test_settings_come_before_the_environment(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPYRA_PERSISTENCE", "nonsense:")
    settings.persistence = persistence
    assert await life_is_recorded_in(persistence)


async def test_the_store_url_in_the_environment_comes_before_the_settings_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAPYRA_PERSISTENCE", "memory:")
    monkeypatch.setenv("PAPYRA_SETTINGS_MODULE", "there_is_no_such_module")
    async with ActorSystem() as system:
        assert isinstance(system.backend, InMemoryPersistence)


async def test_the_settings_module_names_a_backend(
    persistence: InMemoryPersistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("shop_settings")
    module.persistence = persistence  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop_settings", module)
    monkeypatch.setenv("PAPYRA_SETTINGS_MODULE", "shop_settings")
    assert await life_is_recorded_in(persistence)


async def test_a_settings_module_without_a_backend_leaves_the_in_memory_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "shop_settings", types.ModuleType("shop_settings"))
    monkeypatch.setenv("PAPYRA_SETTINGS_MODULE", "shop_settings")
    assert isinstance(settings.resolve_persistence(), InMemoryPersistence)


async def test_each_system_gets_a_fresh_store_if_nothing_is_configured() -> None:
    async with ActorSystem() as one, ActorSystem() as two:
        assert one.backend is not two.backend


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("PAPYRA_PERSISTENCE", "carrier-pigeon://loft", "unknown scheme 'carrier-pigeon:'"),
        ("PAPYRA_PERSISTENCE", "memory", "without a scheme"),
        ("PAPYRA_PERSISTENCE", "memory:/var/lib", "takes nothing after the colon"),
        ("PAPYRA_PERSISTENCE", "json:", "'json:' takes a path"),
        ("PAPYRA_PERSISTENCE", "json://host/events.ndjson", "a path is 'json:///an/absolute"),
        ("PAPYRA_PERSISTENCE", "json:a.ndjson?sync=no", "'json:' takes a path"),
        ("PAPYRA_PERSISTENCE", "json:a.ndjson?fsync=maybe", "fsync is one of always"),
        ("PAPYRA_PERSISTENCE", "rotating:", "'rotating:' takes a path, and .fsync, max_segment"),
        ("PAPYRA_PERSISTENCE", "rotating:a?max_segment_bytes=much", "invalid literal for int"),
        ("PAPYRA_PERSISTENCE", "rotating:a?max_segment_records=0", "max_segment_records is at"),
        ("PAPYRA_SETTINGS_MODULE", "there_is_no_such_module", "can't be imported"),
    ],
)
async def test_an_invalid_store_in_the_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidEnvironment, match=complaint):
        async with ActorSystem():
            pytest.fail("it started")


@pytest.mark.parametrize("form", ["json://{}?fsync=no", "json:{}"])
async def test_the_environment_may_name_a_json_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "my events.ndjson"
    monkeypatch.setenv("PAPYRA_PERSISTENCE", form.format(str(path).replace(" ", "%20")))
    async with ActorSystem() as system:
        await system.spawn(Echo).ask("x")
    assert path.read_text().count("\n") == 3


async def test_the_environment_may_name_a_rotating_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(
        "PAPYRA_PERSISTENCE", f"rotating://{tmp_path}/journal?fsync=no&max_segment_records=2"
    )
    async with ActorSystem() as system:
        await system.spawn(Echo).ask("x")
    segments = sorted((tmp_path / "journal").glob("*.ndjson"))
    assert [path.read_text().count("\n") for path in segments] == [2, 1]


def test_an_error_about_a_store_url_in_the_environment_does_not_repeat_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAPYRA_PERSISTENCE", "mystery://user:secret@host")
    with pytest.raises(InvalidEnvironment) as caught:
        settings.resolve_persistence()
    assert "secret" not in str(caught.value)


def test_assigning_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(UnknownSetting, match="there is no setting 'persistance'"):
        settings.persistance = InMemoryPersistence()
    with pytest.raises(AttributeError):
        _ = settings.persistance  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["memory:", InMemoryPersistence, 7])
def test_assigning_a_setting_of_a_wrong_type_is_an_error(value: object) -> None:
    with pytest.raises(InvalidSetting, match=r"settings.persistence is a PersistenceBackend"):
        settings.persistence = value  # type: ignore[assignment]
    assert settings.persistence is None


def test_a_wrong_type_in_the_settings_module_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shop_settings")
    module.persistence = "memory:"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop_settings", module)
    monkeypatch.setenv("PAPYRA_SETTINGS_MODULE", "shop_settings")
    with pytest.raises(InvalidSetting):
        settings.resolve_persistence()


def test_an_override_of_settings_puts_everything_back() -> None:
    outer, inner = InMemoryPersistence(), InMemoryPersistence()
    with settings.override(persistence=outer) as overridden:
        assert overridden is settings
        with pytest.raises(ZeroDivisionError), settings.override(persistence=inner):
            assert settings.persistence is inner
            raise ZeroDivisionError
        assert settings.persistence is outer
    assert settings.persistence is None


def test_an_override_of_settings_checks_before_it_changes_anything() -> None:
    persistence = InMemoryPersistence()
    with pytest.raises(SettingsError), settings.override(persistence=persistence, colour="red"):
        pytest.fail("it went in")
    assert settings.persistence is None


def test_settings_can_be_made_for_a_test() -> None:
    mine = Settings()
    mine.persistence = InMemoryPersistence()
    assert settings.persistence is None
    del mine.persistence
    assert mine.persistence is None
