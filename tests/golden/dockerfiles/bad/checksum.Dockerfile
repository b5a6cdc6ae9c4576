FROM busybox
ADD --checksum=sha256:aa x /x
