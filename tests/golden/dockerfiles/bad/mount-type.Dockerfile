FROM busybox
RUN --mount=type=disk,target=/x true
