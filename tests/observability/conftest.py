"""What of these tests runs everywhere."""

from __future__ import annotations

from tests.extent import CI

#: What starts servers and browsers, each of which takes seconds; it runs if it is named, too.
collect_ignore = [] if CI else ["test_servers.py", "test_timeline_page.py"]
