FROM busybox
WORKDIR "/x
