FROM busybox
ADD https://example.org/x.git /x
