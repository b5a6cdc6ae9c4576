ARG ONE=1 TWO
ARG THREE="a b"
FROM scratch AS empty
FROM busybox as tools
ONBUILD COPY --from=empty / /x
FROM tools
COPY --from=tools /bin/busybox /bin/
COPY --from=0 . /
ENV a=1 b="two words" c=three\ words d='$x'
LABEL "quoted key"="value \
goes on"
