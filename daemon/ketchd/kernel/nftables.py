"""libnftables(3) in process: commands as text, what they print as text. Source: libnftables(3)."""

from __future__ import annotations

import ctypes

_NFT_CTX_OUTPUT_JSON, _NFT_CTX_OUTPUT_HANDLE = 1 << 4, 1 << 3
_NAMES = ("libnftables.so.1", "libnftables.so")


class Nftables:
    """One libnftables context, for one thread. Raises OSError when the library is not installed. Close it."""

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise OSError("nft_ctx_new failed")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str, *, json: bool = False) -> tuple[bool, str, str]:
        """Carry out `commands` as one transaction: (done, output, complaint). json: output with rule handles as JSON."""
        flags = _NFT_CTX_OUTPUT_JSON | _NFT_CTX_OUTPUT_HANDLE if json else 0
        self._library.nft_ctx_output_set_flags(self._context, flags)
        result = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        complaint = self._library.nft_ctx_get_error_buffer(self._context) or b""
        return result == 0, output.decode(errors="replace"), complaint.decode(errors="replace")

    def close(self) -> None:
        """Let the context go. May be called twice."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None


def _load() -> ctypes.CDLL:
    error: OSError | None = None
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError as missing:
            error = missing
            continue
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for function in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
            getattr(library, function).argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, function).argtypes = [ctypes.c_void_p]
            getattr(library, function).restype = ctypes.c_char_p
        return library
    raise error or OSError(_NAMES[0])
