"""What iscsi-test-cu is expected to find on san-target.

No test may fail anywhere. A test passes on at least one kind of volume, or stands here with the reason why not.
"""

from __future__ import annotations

NOWHERE: dict[str, str] = {}
