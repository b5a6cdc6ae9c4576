FROM busybox
COPY --from=$X a b
