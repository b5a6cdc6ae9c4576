# syntax=docker/dockerfile:1
ARG BASE=debian:bookworm

FROM ${BASE} AS runtime
LABEL org.example.team="web site" version=1
ENV LANG=C.UTF-8 PORT=5000
WORKDIR /app
COPY requirements.txt ./
RUN pip install -r requirements.txt \
    # a comment in the middle

    && rm -rf /root/.cache
COPY . .
EXPOSE 5000 6000-6001/udp
USER nobody:nogroup
VOLUME /data /cache
HEALTHCHECK --interval=30s --timeout=1m30s --retries=3 CMD curl -f http://localhost/ || exit 1
ENTRYPOINT ["python3", "-m"]
CMD ["app"]
