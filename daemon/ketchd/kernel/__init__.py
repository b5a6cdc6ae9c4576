"""The only room with ctypes: one function a system call, errno to OSError with its path, no policy."""
