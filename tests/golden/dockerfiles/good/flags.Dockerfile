#!/usr/bin/env build
FROM --platform=$BUILDPLATFORM busybox AS Build.1
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --network=none apt-get update
RUN --mount=type=bind,from=0,src=/x,dst=/y,rw --mount=type=tmpfs,target=/t,size=64m ["a", "b c"]
RUN --mount=type=secret,id=token,required cat /run/secrets/token
RUN ['not', 'json']
COPY --chown=1000:1000 --chmod=0755 --link --exclude=*.md --exclude=docs a b /dest/
COPY ["with space", "/to here"]
ADD --checksum=sha256:aa https://example.org/x.tar.gz /x
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
CMD
ENTRYPOINT []
