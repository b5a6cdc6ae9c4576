FROM busybox
COPY --chmod=9 a b
