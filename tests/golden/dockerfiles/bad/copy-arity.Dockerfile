FROM busybox
COPY one
