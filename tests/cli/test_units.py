"""Times, durations and sizes: what people write, and what they are told."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from papyra.cli._units import (
    ago,
    duration,
    format_bytes,
    format_count,
    format_duration,
    format_time,
    moment,
    size,
)

NOW = 1_751_328_000.0  # 2025-07-01T00:00:00Z
MINUTE, HOUR, DAY, WEEK = 60, 3600, 86_400, 604_800
NINES = "9" * 400


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 15 * MINUTE),
        ("2h", 2 * HOUR),
        ("7d", 7 * DAY),
        ("2w", 2 * WEEK),
        ("500ms", 0.5),
        ("1h30m", 90 * MINUTE),
        ("1h 30m", 90 * MINUTE),
        ("1 h 30 m", 90 * MINUTE),
        ("1d2h3m4s5ms", DAY + 2 * HOUR + 3 * MINUTE + 4.005),
        ("1.5h", 90 * MINUTE),
        ("0.25s", 0.25),
        ("0s", 0),
        ("0", 0),
        ("42", 42),
        ("42.5", 42.5),
        ("  2h\n", 2 * HOUR),
    ],
)
def test_a_duration_is_parsed_as_people_write_it(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "h", "s2", "-5", "-5s", "+5s", "1e3s", "1e3", ".5s", "5.s", "1,5s", "1_000s"),
        *("5 parsecs", "5y", "5M", "5H", "2hh", "1h-30m", "1h,30m", "1h and 30m", "1h30", "30 1h"),
        *("nan", "inf", "infs", "0x10s", "1h\x00", "1h\t30m!", "s" * 10_000, "\u202e5s"),
    ],
)
def test_a_text_that_is_no_duration_is_refused_with_what_to_write_instead(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 90s, 15m, 2h, 7d or 1h30m") as caught:
        duration(text)
    assert repr(text.strip()) in str(caught.value)


def test_a_duration_of_too_many_digits_is_infinite_or_refused() -> None:
    try:
        seconds = duration(f"{NINES}d")
    except ValueError:
        return
    assert seconds == math.inf


@given(st.text())
@example("1" * 100_000)
@example("1h" * 10_000)
def test_any_text_parsed_as_a_duration_is_one_or_a_value_error(text: str) -> None:
    try:
        seconds = duration(text)
    except ValueError:
        return
    assert seconds >= 0


@given(st.floats(0.001, 1e9))
@example(0.9996)
@example(59.9996)
@example(3599.9999)
@example(86_399.5)
def test_a_formatted_duration_parses_back_to_its_two_largest_units(seconds: float) -> None:
    steps = {1: 0.00051, HOUR: 1, DAY: MINUTE, math.inf: HOUR}
    step = next(step for limit, step in steps.items() if seconds < limit)
    assert duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-12, abs=step)
    assert len(format_duration(seconds).split()) <= 2


@given(st.floats(0, 1e9))
@example(0.9996)
@example(0.99951)
@example(59.99)
@example(119.99)
def test_no_part_of_a_formatted_duration_is_as_much_as_the_next_unit(seconds: float) -> None:
    limits = {"ms": 1000, "s": 60, "m": 60, "h": 24, "d": math.inf}
    for part in format_duration(seconds).split():
        number = part.rstrip("dhms")
        assert int(number) < limits[part[len(number) :]], format_duration(seconds)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0ms"),
        (0.0004, "0ms"),
        (0.25, "250ms"),
        (1, "1s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (7500, "2h 5m"),
        (7200, "2h"),
        (7201, "2h"),
        (86_400, "1d"),
        (90_000, "1d 1h"),
        (86_460, "1d"),
        (604_800, "7d"),
        (512 * DAY + 21 * HOUR + 59 * MINUTE, "512d 21h"),
    ],
)
def test_a_duration_is_formatted_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


# Sizes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1kib", 1024),
        ("1KB", 1000),
        ("1kb", 1000),
        ("512MiB", 512 * 1024**2),
        ("512M", 512 * 1024**2),
        ("512 MiB", 512 * 1024**2),
        ("10MB", 10_000_000),
        ("1GiB", 1024**3),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("2T", 2 * 1024**4),
        ("3PB", 3 * 10**15),
        ("  1GiB\n", 1024**3),
    ],
)
def test_a_size_in_bytes_is_parsed_as_people_write_it(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "B", "MiB", "-1", "-1MiB", "+1", "1e3", ".5M", "5.M", "1,5M", "1_000", "0x10"),
        *(
            "1EiB",
            "1 M B",
            "1MiBB",
            "1bit",
            "1Mi",
            "M1",
            "1M1K",
            "nan",
            "inf",
            "1M\x00",
            "1\u202eM",
        ),
    ],
)
def test_a_text_that_is_no_size_is_refused_with_what_to_write_instead(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"write 512MiB, 1GiB, 10MB or a number of bytes"
    ) as caught:
        size(text)
    assert repr(text) in str(caught.value)


@given(st.text() | st.from_regex(r"\A[0-9]{1,400}(\.[0-9]{1,9})?[KMGTP]?(iB|B)?\Z"))
@example(NINES)
@example(f"{NINES}PiB")
def test_any_text_parsed_as_a_size_is_one_or_a_value_error(text: str) -> None:
    try:
        count = size(text)
    except ValueError:
        return
    assert type(count) is int
    assert count >= 0


@given(st.integers(0, 2**63))
@example(2**53 + 1)
def test_a_size_written_as_a_plain_number_is_that_many_bytes(count: int) -> None:
    assert size(str(count)) == size(f"{count}B") == count


@given(st.integers(0, 2**62))
@example(1023)
@example(1024**2 - 1)
@example(1024**3 - 1)
def test_a_formatted_size_parses_back_to_its_last_digit(count: int) -> None:
    said = format_bytes(count)
    assert size(said) == pytest.approx(count, rel=0.05, abs=0.05)


@given(st.integers(0, 1023 * 1024**5))
@example(1024**2 - 1)
@example(1024**3 - 1)
@example(1024**5 - 1)
def test_a_size_is_formatted_in_the_largest_unit_that_fits(count: int) -> None:
    number, unit = format_bytes(count).split()
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    assert float(number) < 1024, format_bytes(count)
    assert float(number) >= 1 or unit == "B"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (142_711_194, "136.1 MiB"),
        (1024**3, "1.0 GiB"),
        (5 * 1024**5, "5.0 PiB"),
        (2000 * 1024**5, "2000.0 PiB"),
    ],
)
def test_a_size_is_formatted_in_steps_of_1024(count: int, said: str) -> None:
    assert format_bytes(count) == said


# Counts


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0"),
        (7, "7"),
        (7.0, "7"),
        (999, "999"),
        (673_385, "673,385"),
        (10**12, "1,000,000,000,000"),
        (0.5, "0.5"),
        (1.25, "1.2"),
        (0.017, "0.017"),
        (12.3, "12"),
        (123.4, "123"),
        (1234.5, "1,234"),
    ],
)
def test_a_count_is_formatted_with_separators(count: float, said: str) -> None:
    assert format_count(count) == said


@given(st.floats(0.001, 1e12))
@example(99.6)
@example(99.51)
@example(9.96)
def test_a_count_is_formatted_without_an_exponent(count: float) -> None:
    said = format_count(count)
    assert "e" not in said
    assert float(said.replace(",", "")) == pytest.approx(count, rel=0.06)


# Times


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("1h", NOW - HOUR),
        ("1h30m", NOW - 90 * MINUTE),
        ("7d", NOW - WEEK),
        ("0s", NOW),
        ("2025-07-01", NOW),
        ("2025-07-01T00:00", NOW),
        ("2025-07-01 00:00:01", NOW + 1),
        ("2025-07-01T00:00:00.250", NOW + 0.25),
        ("2025-07-01T00:00:00Z", NOW),
        ("2025-07-01T02:00:00+02:00", NOW),
        ("2025-06-30T19:30-04:30", NOW),
        ("1751328000", NOW),
        ("1751328000.5", NOW + 0.5),
        ("-1", -1),
        ("0", 0),
        ("@1751328000.5", NOW + 0.5),
        ("@20240101", 20_240_101),
        ("@-1", -1),
        ("@1e+300", 1e300),
        ("100000000", 100_000_000),
        ("1 h", NOW - HOUR),
        ("20250701T000001", NOW + 1),
        ("2025-W27-2", NOW),
        ("2025-07-01t00:00z", NOW),
        ("1969-12-31", -DAY),
        ("0001-01-01", -62_135_596_800),
        ("0001-01-01T00:00+10:00", -62_135_596_800 - 10 * HOUR),
        ("9999-12-31T23:59:59", 253_402_300_799),
        ("  1h\n", NOW - HOUR),
    ],
)
def test_a_time_is_parsed_as_people_write_it(text: str, when: float) -> None:
    assert moment(text, NOW) == when


def test_a_time_without_a_zone_is_parsed_as_utc_in_every_local_time_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "Asia/Kathmandu")
            time.tzset()
            assert moment("2025-07-01T00:00", NOW) == NOW
            assert format_time(NOW) == "2025-07-01T00:00:00.000Z"
    finally:
        time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "yesterday", "now", "10:00", "2025-13-01", "2025-02-30", "2025-07-01T25:00"),
        *("1h ago", "1hour", "-1h", "1h-", "2025-07-01T", "01/07/2025", "1e9", "nan", "inf", "--1"),
        *("2025-07-01\x00", "\x1b[31m", "2025-07-01T00:00+99:00"),
        *("2025-07-01x10:00", "2025-07-01\x0010:00", "2025-07", "2025-182", "@", "@nan", "@1e999"),
        *("@2025-07-01", "@1h", "\uff11h", f"-{NINES}", f"{NINES}d", "1751328000_000"),
    ],
)
def test_a_text_that_is_no_time_is_refused_with_what_to_write_instead(text: str) -> None:
    with pytest.raises(ValueError, match=r"write ") as caught:
        moment(text, NOW)
    assert repr(text.strip()) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("20240101", "a date (2024-01-01) or Unix time (@20240101)"),
        ("2024", "a date or Unix time (@2024)"),
        ("202401", "a date or Unix time (@202401)"),
        ("2024001", "a date or Unix time (@2024001)"),
        ("20240101120000", "a date or Unix time (@20240101120000)"),
        ("20240101.5", "a date (2024-01-01) or Unix time (@20240101)"),
        ("1751328000000", "smaller units than seconds (@1751328000)"),
        ("90", "an age (90s) or Unix time (@90)"),
        ("86400", "an age (86400s) or Unix time (@86400)"),
        (NINES, "Unix time (@999999999999...)"),
        ("1mo", "write 30d or 365d"),
        ("2 years", "write 30d or 365d"),
        ("1y", "write 30d or 365d"),
    ],
)
def test_an_ambiguous_time_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="write ") as caught:
        moment(text, NOW)
    assert said in str(caught.value)


@given(st.text() | st.from_regex(r"\A-?[0-9]{1,400}(\.[0-9]+)?[hdw]?\Z"))
@example(NINES)
@example(f"-{NINES}")
@example(f"{NINES}d")
def test_any_text_parsed_as_a_time_is_one_or_a_value_error(text: str) -> None:
    try:
        when = moment(text, NOW)
    except ValueError:
        return
    assert math.isfinite(when)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (None, "-"),
        (0, "1970-01-01T00:00:00.000Z"),
        (NOW + 0.25, "2025-07-01T00:00:00.250Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
        (-62_135_596_800, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        (253_402_300_800, "@2.53402e+11"),
        (1e300, "@1e+300"),
        (-1e300, "@-1e+300"),
        (math.inf, "@inf"),
        (math.nan, "@nan"),
    ],
)
def test_a_time_is_formatted_in_utc_to_the_millisecond(when: float | None, said: str) -> None:
    assert format_time(when) == said


def test_a_time_beyond_the_calendar_is_not_formatted_like_a_date() -> None:
    assert format_time(NOW * 1000).startswith("@")


@given(st.integers(-62_135_596_800_000, 253_402_300_799_000))
@example(1_751_328_000_001)
@example(1_001)
def test_a_time_in_whole_milliseconds_is_formatted_exactly(milliseconds: int) -> None:
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    said = format_time(milliseconds / 1000)
    assert datetime.fromisoformat(said) == expected
    assert said.endswith("Z")


@given(st.floats(-62_135_596_800, 253_402_300_799))
def test_a_formatted_time_parses_back_to_the_millisecond(when: float) -> None:
    assert moment(format_time(when), NOW) == pytest.approx(when, rel=0, abs=0.00105)


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_of_any_zone_is_parsed_as_the_calendar_has_it(when: datetime, minutes: int) -> None:
    aware = when.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert moment(aware.isoformat(), NOW) == aware.timestamp()


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (NOW, "0ms ago"),
        (NOW - 0.5, "500ms ago"),
        (NOW - 7500, "2h 5m ago"),
        (NOW + 90, "in 1m 30s"),
        (NOW - 512 * DAY, "512d ago"),
    ],
)
def test_the_age_of_a_time_is_formatted_as_how_long_ago_it_was(when: float, said: str) -> None:
    assert ago(when, NOW) == said


@pytest.mark.parametrize("when", [1e300, -1e300, 0.0, 1e-300])
def test_the_age_of_any_time_is_formatted_as_past_or_future(when: float) -> None:
    said = ago(when, NOW)
    assert said.startswith("in ") != said.endswith(" ago")
