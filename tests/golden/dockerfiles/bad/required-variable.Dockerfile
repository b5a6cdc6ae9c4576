FROM busybox
ENV A=${B:?missing}
