# syntax=docker/dockerfile:1
# A static binary on an empty base. There is no shell, no package manager and nothing to update but larder itself.

ARG RUST_VERSION=1.95
FROM rust:${RUST_VERSION}-alpine AS build
# A C compiler for ring and zstd; the host target of this base is musl, which links statically.
RUN apk add --no-cache build-base ca-certificates
WORKDIR /src
COPY . .
# /tmp is where `larder demo` works.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
    && install -D -m 0755 target/release/larder /out/larder \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 1777 /out/tmp

FROM scratch
COPY --from=build /out/ /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
LABEL org.opencontainers.image.title="larder" \
      org.opencontainers.image.description="An image cache for Kubernetes nodes" \
      org.opencontainers.image.licenses="Apache-2.0"
# The user is root, and there is no other: the agent mounts file systems, makes device nodes and writes files of any
# owner. Give it CAP_SYS_ADMIN, CAP_MKNOD and a bidirectional mount of its root; `larder demo`, and `larder pull`,
# `images` and `unpack` with --root, work as any user (--user).
ENTRYPOINT ["/larder"]
CMD ["agent"]
