# escape=`

FROM busybox
COPY file.txt c:\
RUN dir `
    c:\
env  key   the rest of "it"
Maintainer  Me <me@example.org>
