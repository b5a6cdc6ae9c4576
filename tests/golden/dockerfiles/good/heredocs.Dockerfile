FROM busybox
RUN <<EOT
echo first # not a comment
  indented \
EOT
RUN cat <<ONE >/one && cat <<-'TWO' >/two
$HOME
ONE
	tabs go
	TWO
COPY <<config.json <<"raw" /etc/app/
{"port": $PORT}
config.json
$PORT stays
raw
RUN <<-SCRIPT
	#!/bin/sh
	echo hi
	SCRIPT
ONBUILD RUN <<LATER
touch /later
LATER
