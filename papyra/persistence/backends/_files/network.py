"""File systems that other machines share: what is mounted where, as the system says it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ("network_file_system", "network_mount", "network_type")

_MOUNTS = Path("/proc/self/mountinfo")
#: Types that are shared, whatever they are mounted from.
_SHARED = frozenset(
    {
        *("9p", "afs", "auristorfs", "beegfs", "ceph", "cifs", "coda", "fhgfs", "gfs2", "gpfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb2", "smb3"),
        *("smbfs", "vboxsf", "virtiofs", "vmhgfs", "fuse.vmhgfs-fuse"),
    }
)
#: The flag of a local file system in the `statfs` of macOS, and where its flags and type are.
_LOCAL, _FLAGS, _TYPE = 0x1000, slice(64, 68), slice(72, 88)
#: Bytes that a `statfs` has at most.
_STATFS = 4096


def network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that a path is on; `None` where it seems local.

    Where the system can't tell, it seems local.
    """
    try:
        if sys.platform == "darwin":
            return network_type(_statfs(path))
        return network_mount(_MOUNTS.read_text(errors="surrogateescape"), path.stat().st_dev)
    except (OSError, AttributeError):
        return None


def network_mount(mounts: str, device: int) -> str | None:
    """Return the type of what is mounted as a device, if that is shared with other machines.

    `mounts` is what Linux says in ``/proc/self/mountinfo``.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, origin = before.split(" "), after.split(" ")
        if len(fields) > 2 and fields[2] == number and len(origin) > 1:
            return origin[0] if _is_shared(*origin[:2]) else None
    return None


def _is_shared(kind: str, source: str) -> bool:
    """Return whether a type is shared, or what is mounted is named as by its host.

    As the tools of GNU have it. Names of devices and of datasets may have a colon, too.
    """
    is_local = source.startswith("/dev/") or kind == "zfs"
    return kind in _SHARED or (":" in source and not is_local)


def network_type(statfs: bytes) -> str | None:
    """Return the type of a file system that is not local, by the `statfs` of macOS."""
    if int.from_bytes(statfs[_FLAGS], sys.byteorder) & _LOCAL:
        return None
    return statfs[_TYPE].partition(b"\0")[0].decode(errors="replace")


def _statfs(path: Path) -> bytes:
    system = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS)
    # With the layout of today, which has another name where there was one before.
    call = getattr(system, "statfs$INODE64", None) or system.statfs
    if call(os.fsencode(path), buffer):
        raise OSError(ctypes.get_errno(), "statfs failed", str(path))
    return buffer.raw
