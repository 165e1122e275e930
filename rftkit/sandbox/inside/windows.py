"""Windows by ctypes: the process lowers its own integrity level, before it runs a program.

A process of low integrity cannot change files, processes or windows of the ordinary level, nor
read other processes' memory. It may still read files and use the network.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_LOW = "S-1-16-4096"
_LOW_FOLDER = "S:(ML;OICI;NW;;;LW)"  # for the folder and all that comes into it
_ADJUST_AND_QUERY, _INTEGRITY_LEVEL, _GROUP_INTEGRITY = 0x80 | 0x8, 25, 0x20
_FILE_OBJECT, _LABEL = 1, 0x10


class _Label(ctypes.Structure):
    """TOKEN_MANDATORY_LABEL."""

    _fields_ = (("sid", ctypes.c_void_p), ("attributes", ctypes.c_uint32))


def lower_integrity(box: Path) -> None:
    """Lower this process for good, and `box`, so that it may still write there.

    Raises OSError where Windows refuses.
    """
    if sys.platform == "win32":
        api = ctypes.WinDLL("advapi32", use_last_error=True)
        _label_folder(api, box)
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        token, sid = ctypes.c_void_p(), ctypes.c_void_p()
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        _check(api.OpenProcessToken(process, _ADJUST_AND_QUERY, ctypes.byref(token)))
        _check(api.ConvertStringSidToSidW(_LOW, ctypes.byref(sid)))
        label = _Label(sid.value, _GROUP_INTEGRITY)
        size = ctypes.sizeof(label) + api.GetLengthSid(sid)
        _check(api.SetTokenInformation(token, _INTEGRITY_LEVEL, ctypes.byref(label), size))


if sys.platform == "win32":

    def _label_folder(api: ctypes.WinDLL, box: Path) -> None:
        descriptor, acl = ctypes.c_void_p(), ctypes.c_void_p()
        present, defaulted = ctypes.c_int(), ctypes.c_int()
        convert = api.ConvertStringSecurityDescriptorToSecurityDescriptorW
        _check(convert(_LOW_FOLDER, 1, ctypes.byref(descriptor), None))
        flags = (ctypes.byref(present), ctypes.byref(acl), ctypes.byref(defaulted))
        _check(api.GetSecurityDescriptorSacl(descriptor, *flags))
        code = api.SetNamedSecurityInfoW(str(box), _FILE_OBJECT, _LABEL, None, None, None, acl)
        if code:
            raise ctypes.WinError(code)

    def _check(succeeded: int) -> None:
        if not succeeded:
            raise ctypes.WinError(ctypes.get_last_error())
