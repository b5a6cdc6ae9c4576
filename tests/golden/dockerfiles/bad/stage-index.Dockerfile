FROM busybox
COPY --from=9 a b
