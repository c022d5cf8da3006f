"""Where a store is, what is in its URL, and what of that is shown."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import redis
import trustme

from papyra import ActorSystem
from papyra.cli._store_argument import backend_at
from papyra.conf import backend_from_url, settings
from papyra.exceptions import (
    InvalidEnvironment,
    InvalidPolicy,
    InvalidStoreURL,
    StoreError,
    StoreReadOnly,
    StoreUnreachable,
)
from papyra.persistence import Append
from papyra.persistence.backends._redis.config import Target
from papyra.persistence.backends.redis import RedisStreamsConfig, RedisStreamsPersistence
from papyra.testing._stores import forget, new_store
from papyra.testing.conformance._fixtures import a_record, an_event, everything
from tests.conftest import on_event_loops
from tests.extent import CI
from tests.persistence.backends.redis.conftest import MakeStore
from tests.persistence.backends.redis.proxy import Proxy
from tests.persistence.backends.redis.test_cluster import port_with_bus
from tests.redis_server import RedisServer, free_port

SECRET = "s3cret-pa55word"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "topology", "nodes", "service", "plain"),
        [
            ("redis://", "server", [("localhost", 6379)], "", "redis://localhost:6379"),
            ("redis://h:1/2?a=b", "server", [("h", 1)], "", "redis://h:1/2?a=b"),
            ("rediss://u:p@h", "server", [("h", 6379)], "", "rediss://u:p@h:6379"),
            ("redis://[::1]:7/0", "server", [("::1", 7)], "", "redis://[::1]:7/0"),
            ("unix:///run/r.sock?db=1", "server", [], "", "unix:///run/r.sock?db=1"),
            (
                "redis+sentinel://u:p%40@a:1,b,[::1]:3/orders/2?x=y",
                "sentinel",
                [("a", 1), ("b", 26379), ("::1", 3)],
                "orders",
                "redis://u:p%40@a:1/2?x=y",
            ),
            (
                "rediss+cluster://:p@a:1,b",
                "cluster",
                [("a", 1), ("b", 6379)],
                "",
                "rediss://:p@a:1",
            ),
        ],
    )
    def test_a_redis_url_leads_to_its_topology_nodes_and_service(
        self, url: str, topology: str, nodes: list[Any], service: str, plain: str
    ) -> None:
        target = Target.of(url)
        assert (target.topology, list(target.nodes)) == (topology, nodes)
        assert (target.service, target.plain_url) == (service, plain)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "redis",
            f"http://:{SECRET}@h",
            f"redis://:{SECRET}@h:port/0",
            f"redis://:{SECRET}@h/orders",
            f"redis://:{SECRET}@h/0/1",
            f"redis://:{SECRET}@a,b/0",
            f"redis+sentinel://:{SECRET}@a,b",
            f"redis+cluster://:{SECRET}@a/3",
            5,
        ],
    )
    def test_an_error_about_a_redis_url_does_not_repeat_its_password(self, url: Any) -> None:
        with pytest.raises(InvalidPolicy) as caught:
            RedisStreamsConfig(url=url)
        assert SECRET not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{SECRET}@h:1/0",
            f"redis://u:{SECRET}@h:1/0?password={SECRET}",
            f"redis://h/0?ssl_password={SECRET}",
            f"unix://u:{SECRET}@/run/r.sock?password={SECRET}",
            f"redis+sentinel://:{SECRET}@a,b/orders?sentinel_password={SECRET}",
            f"redis+cluster://:{SECRET}@a,b",
        ],
    )
    def test_a_redis_store_and_its_config_show_no_password(self, url: str) -> None:
        config = RedisStreamsConfig(url=url, system_id="orders")
        store = RedisStreamsPersistence(config)
        shown = [repr(config), str(config), config.location, repr(store)]
        shown += [str(list(config.__rich_repr__())), repr(vars(store))]
        assert SECRET not in " ".join(shown)
        assert "orders" in repr(config)

    def test_options_of_a_redis_store_are_in_the_query_of_its_url(self) -> None:
        config = RedisStreamsConfig.from_url(
            "redis://h/0?prefix=p&system_id=s&acknowledge=replicas:2&timeout=1.5"
            "&read_only=true&ssl_ca_certs=x&max_connections=7"
        )
        assert config == RedisStreamsConfig(
            url="redis://h/0?ssl_ca_certs=x",
            prefix="p",
            system_id="s",
            acknowledge="replicas:2",
            timeout=1.5,
            read_only=True,
            max_connections=7,
        )
        assert config.replicas == 2
        with pytest.raises(InvalidPolicy, match="timeout"):
            RedisStreamsConfig.from_url(f"redis://:{SECRET}@h/0?timeout=long")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"prefix": ""},
            {"system_id": "a{b}"},
            {"system_id": "a\nb"},
            {"system_id": 5},
            {"acknowledge": "replicas:0"},
            {"acknowledge": "all"},
            {"timeout": 0},
            {"timeout": "1"},
            {"retry_for": -1},
            {"retry_for": float("inf")},
            {"max_connections": 0},
            {"trim": "roughly"},
            {"read_only": 1},
        ],
        ids=str,
    )
    def test_invalid_options_of_a_redis_store_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidPolicy, match=next(iter(wrong))):
            RedisStreamsConfig(**wrong)

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            *(
                (f"redis://h/0?{option}", option.partition("=")[0])
                for option in (
                    *("decode_responses=true", "decode_responses", "decode_responses=banana"),
                    *("encoding=utf-16", "encoding_errors=ignore", "protocol=3", "protocol=two"),
                    *("retry=3", "retry_on_timeout=true", "retry_on_error=x", "socket_type=1"),
                    *("max_connections=0", "max_connections=many", "socket_keepalive=banana"),
                    *("socket_timeout=0", "socket_timeout=nan", "socket_timeout=0.5", "db=-1"),
                    *("db=one", "connection_class=x", "parser_class=x", "host=other", "port=1"),
                    *("credential_provider=x", "socket_read_size=0", "Decode_Responses=false"),
                    *("ssl_cert_reqs=perhaps", "ssl_min_version=1", "health_check_interval=x"),
                    *("path=x", "sentinel_password=x", "legacy_responses=true", "client_name="),
                    *(
                        "client_name=a%20b",
                        "client_name=%C3%A9",
                        "lib_name=a%0Ab",
                        "lib_version=%7F",
                    ),
                )
            ),
            ("redis://h/0?db=1", "'db'"),
            ("redis://h/0?protocol=2&protocol=2", "'protocol' twice"),
            ("redis+sentinel://h/service/0?db=1", "'db'"),
            ("redis+cluster://h?db=1", "'db'"),
            ("rediss+cluster://h?ssl_password=x", "ssl_password"),
            (f"redis://:{SECRET}@h?password=other-{SECRET}", "password twice"),
            ("redis://one:x@h?username=two", "username twice"),
            ("redis://h/0#part", "#"),
            ("redis://h:0", "host:port"),
            ("redis://h\n/0", "printed"),
            ("redis+cluster://h,", "host:port"),
            ("redis+sentinel://,h/service", "host:port"),
            ("unix://run/redis.sock", "absolute path"),
            ("unix://", "absolute path"),
            ("unix:///run/redis.sock?socket_keepalive=true", "socket_keepalive"),
        ],
    )
    def test_unusable_options_of_a_redis_config_are_refused_by_name(
        self, url: str, name: str
    ) -> None:
        with pytest.raises(InvalidPolicy, match=name) as caught:
            RedisStreamsConfig(url=url)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(InvalidStoreURL, match=name):
            backend_from_url(url)

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("redis://h?timeout=1&timeout=2", "'timeout' twice"),
            ("redis://h?acknowledge_timeout=1e300", "acknowledge_timeout"),
            ("redis://h?ssl_ca_certs=x", "ssl_ca_certs"),
            ("redis+cluster://h?ssl_ca_certs=x", "ssl_ca_certs"),
            ("redis://h?url=redis://other", "url"),
        ],
    )
    def test_unusable_options_of_a_redis_store_url_are_refused_by_name(
        self, url: str, name: str
    ) -> None:
        with pytest.raises(InvalidStoreURL, match=name):
            backend_from_url(url)

    def test_a_redis_store_takes_a_config_and_no_url(self) -> None:
        wrong: Any = f"redis://:{SECRET}@h"
        with pytest.raises(InvalidPolicy) as caught:
            RedisStreamsPersistence(wrong)
        assert SECRET not in str(caught.value)

    def test_every_key_of_a_redis_store_is_in_one_slot(self) -> None:
        keys = RedisStreamsConfig(prefix="p", system_id="s").keys
        names = ("meta", "events", "audits", "dead_letters", "actors", "bases")
        assert keys.all == [f"{{p:s}}:{name}" for name in names]
        beside = ("snapshots", "snapshot_names")
        assert keys.beside == [keys.meta, *(f"{{p:s}}:{name}" for name in beside)]
        assert len(keys.everything) == len(set(keys.everything)) == 13
        assert {key[:5] for key in keys.everything} == {"{p:s}"}
        assert keys.quarantine("dead_letter") == "{p:s}:quarantine:dead_letter"


class TestTheEnvironment:
    async def test_the_environment_may_name_a_redis_server(
        self, server: RedisServer, config: RedisStreamsConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"{server.url}?prefix={config.prefix}&system_id={config.system_id}"
        monkeypatch.setenv("PAPYRA_PERSISTENCE", url)
        with settings.override(persistence=None):
            async with ActorSystem(audit_interval=None) as system:
                await system.persistence.ask(Append(an_event(1)))
        async with RedisStreamsPersistence(config) as store:
            assert an_event(1).payload in [event.payload for event in await store.list_events()]

    @pytest.mark.parametrize("rest", ["@h/0?timeout=long", "@h/x", "@h,i/0"])
    def test_an_error_about_a_redis_url_in_the_environment_does_not_repeat_its_password(
        self, monkeypatch: pytest.MonkeyPatch, rest: str
    ) -> None:
        monkeypatch.setenv("PAPYRA_PERSISTENCE", f"redis://:{SECRET}{rest}")
        with settings.override(persistence=None):
            with pytest.raises(InvalidEnvironment) as caught:
                settings.resolve_persistence()
            assert SECRET not in "".join(traceback.format_exception(caught.value))

    def test_an_import_without_redis_py_names_the_extra_redis(self) -> None:
        code = """
import sys
sys.modules["redis"] = None
try:
    import papyra.persistence.backends.redis
except ImportError as error:
    print(type(error).__name__, error)
import os
from papyra.conf import settings
os.environ["PAPYRA_PERSISTENCE"] = "redis://h/0"
try:
    settings.resolve_persistence()
except Exception as error:
    print(type(error).__name__, error)
"""
        said = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert [line.split()[0] for line in said] == ["MissingExtra", "InvalidEnvironment"]
        assert all("extra 'redis'" in line and "pip install '.[redis]'" in line for line in said)


WORKING = (
    *("client_name=me", "decode_responses=false", "encoding=utf-8", "encoding_errors=strict"),
    *("health_check_interval=1", "max_connections=5"),
    *("protocol=2", "socket_connect_timeout=3", "socket_read_size=100", "socket_timeout=60"),
    *("socket_keepalive=yes", "db=3", "username=default&password=any"),
)


class TestConnections:
    async def test_options_of_redis_py_that_a_redis_url_lets_through_work(
        self, server: RedisServer, config: RedisStreamsConfig
    ) -> None:
        for number, option in enumerate(WORKING):
            url = f"redis://127.0.0.1:{server.port}?{option}&system_id={config.system_id}{number}"
            store = backend_from_url(f"{url}&prefix=test")
            assert isinstance(store, RedisStreamsPersistence)
            async with store:
                await store.append(*map(a_record, range(3)))
                assert len(await everything(store)) == 3
                await anext(store.follow())
                await anext(store.consume("group", "one"))
                await store.flush()
            with redis.Redis.from_url(server.url) as client:
                client.select(3 if option == "db=3" else 0)
                assert client.delete(*store.config.keys.all) == 4

    @pytest.mark.parametrize(
        "scheme",
        ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "rediss+cluster"]
        if CI
        else ["redis", "rediss+sentinel", "rediss+cluster"],
    )
    @on_event_loops("asyncio")
    async def test_options_of_a_redis_url_are_taken_by_the_client_of_every_topology(
        self, scheme: str, tmp_path: Path
    ) -> None:
        """Up to the connection, which nobody answers."""
        tls = [
            *("ssl_cert_reqs=none", "ssl_cert_reqs=required", "ssl_check_hostname=false"),
            *("ssl_min_version=771", "ssl_ciphers=DEFAULT", "ssl_ca_data=x", "ssl_ca_certs=x"),
        ]
        options = ["db=0" if option == "db=3" else option for option in WORKING]
        for option in options + (tls if scheme.startswith("rediss") else []):
            path = "/service" if "sentinel" in scheme else ""
            url = f"{scheme}://127.0.0.1:{free_port()}{path}?{option}&retry_for=0"
            store = backend_from_url(url)
            with pytest.raises(StoreUnreachable):
                await store.append(a_record(0))

    async def test_a_redis_store_connects_through_tls_with_a_trusted_certificate_only(
        self, server: RedisServer, config: RedisStreamsConfig, tmp_path: Path
    ) -> None:
        """Through a proxy that ends it, as not every server is built with it."""
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        trusted = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(trusted))
        with Proxy(server.port, tls=context) as proxy:
            url = f"rediss://127.0.0.1:{proxy.port}/0"
            changed = msgspec.structs.replace(config, url=url, retry_for=0)
            with pytest.raises(StoreUnreachable, match=r"(?i)certificate"):
                await RedisStreamsPersistence(changed).append(an_event(1))
            changed = msgspec.structs.replace(changed, url=f"{url}?ssl_ca_certs={trusted}")
            async with RedisStreamsPersistence(changed) as store:
                await store.append(*map(an_event, range(3)))
                assert len(await store.list_events()) == 3

    async def test_a_redis_store_connects_through_a_unix_socket(
        self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever a store may be named."""
        path = tmp_path / "a socket"
        url = f"unix://{str(path).replace(' ', '%20')}?db=1"
        with RedisServer(binary, "--unixsocket", str(path)):
            async with RedisStreamsPersistence(RedisStreamsConfig(url=url)) as store:
                assert (await store.append(an_event(1))).first_seq == 1
                assert "db=1" in store.location
            store_url = f"{url}&system_id=papyra"
            monkeypatch.setenv("PAPYRA_PERSISTENCE", store_url)
            with settings.override(persistence=None):
                async with settings.resolve_persistence() as named:
                    assert (await named.append(an_event(2))).first_seq == 2
            async with backend_from_url(store_url) as named:
                assert (await named.append(an_event(3))).first_seq == 3
            async with backend_at(store_url).reader() as named:
                assert len(await everything(named)) == 3
            monkeypatch.setenv("PAPYRA_TEST_STORE", "redis")
            monkeypatch.setenv("REDIS_URL", url)
            tested = new_store(lambda: tmp_path, {})
            async with tested:
                assert (await tested.append(an_event(1))).first_seq == 1
            forget(tested)
            with redis.Redis(unix_socket_path=str(path), db=1) as client:
                assert all(b"{papyra:papyra}" in key for key in client.scan_iter())

    async def test_a_unix_socket_of_a_redis_cluster_is_refused_with_the_scheme_to_use(
        self, binary: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "socket"
        options = ("--unixsocket", str(path), "--cluster-enabled", "yes")
        with RedisServer(binary, *options, port=port_with_bus()):
            store = RedisStreamsPersistence(RedisStreamsConfig(url=f"unix://{path}", retry_for=0))
            with pytest.raises(StoreError, match=r"redis\+cluster"):
                await store.append(an_event(1))

    async def test_a_redis_store_opens_no_more_than_two_connections(
        self, server: RedisServer, config: RedisStreamsConfig
    ) -> None:
        with Proxy(server.port) as proxy:
            changed = msgspec.structs.replace(config, url=proxy.url)
            async with RedisStreamsPersistence(changed) as store:
                for number in range(30):
                    await store.append(a_record(number))
                    await store.list_events()
                assert proxy.connections <= 2  # one for appends, and one for the rest

    async def test_a_redis_store_works_with_one_connection_if_it_may_have_no_other(
        self, server: RedisServer, config: RedisStreamsConfig
    ) -> None:
        changed = msgspec.structs.replace(config, max_connections=1, retry_for=0)
        async with RedisStreamsPersistence(changed) as store:
            for number in range(3):
                await store.append(a_record(number))
                await store.list_events()
                await store.scan()
            await anext(store.follow())
            assert (await store.append(an_event(3))).first_seq == 4

    @pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
    async def test_tls_options_of_a_redis_url_without_tls_are_named_at_opening(
        self, scheme: str
    ) -> None:
        url = f"{scheme}://localhost:1/{'service' if 'sentinel' in scheme else ''}?ssl_ca_certs=x"
        store = RedisStreamsPersistence(RedisStreamsConfig(url=url, retry_for=0))
        with pytest.raises(StoreError, match=r"'ssl_ca_certs': begin it with rediss"):
            await store.append(an_event(1))

    async def test_a_closed_redis_store_leaves_no_connection_or_thread(
        self, server: RedisServer, config: RedisStreamsConfig
    ) -> None:
        threads = threading.active_count()
        with Proxy(server.port) as proxy:
            changed = msgspec.structs.replace(config, url=proxy.url)
            for _ in range(3):
                store = RedisStreamsPersistence(changed)
                await store.append(an_event(1))
                await anext(store.follow())
                await store.aclose()
            assert proxy.are_closed()
        assert threading.active_count() == threads

    async def test_a_redis_store_stops_retrying_after_retry_for_and_logs_no_password(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"redis://somebody:{SECRET}@127.0.0.1:{free_port()}/0"
        config = RedisStreamsConfig(url=url, retry_for=0.05, backoff=0.001)
        store = RedisStreamsPersistence(config)
        with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnreachable) as caught:
            await store.append(an_event(1))
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text
        await store.aclose()

    async def test_a_read_only_redis_store_changes_nothing(
        self, config: RedisStreamsConfig, make: MakeStore
    ) -> None:
        reader = RedisStreamsPersistence(msgspec.structs.replace(config, read_only=True))
        async with make() as writer, reader:
            await writer.append(*map(a_record, range(5)))
            assert len(await everything(reader)) == 5
            assert (await reader.scan()).is_clean
            assert (await reader.flush()).last_seq == 5
            for verb in (lambda: reader.append(an_event(1)), reader.recover, reader.compact):
                with pytest.raises(StoreReadOnly):
                    await verb()
            await writer.append(a_record(5))
            assert (await reader.flush()).last_seq == 6


def test_a_redis_store_may_be_used_in_one_event_loop_after_another(make: MakeStore) -> None:
    """Closed in between, as a connection belongs to its loop."""

    async def write(store: RedisStreamsPersistence, number: int) -> int:
        async with store:
            return (await store.append(an_event(number))).first_seq

    store = make()
    loops: Iterator[str] = iter(["asyncio", "trio", "asyncio", "trio"])
    for number, loop in enumerate(loops, start=1):
        assert anyio.run(write, store, number, backend=loop) == number
