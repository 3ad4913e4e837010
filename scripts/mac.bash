# Sourced: what scripts/mac-check and `scripts/package macos` share, the compilers for a Mac on Linux.
#
# Debian's rustc-web brings a compiler with the source of std, zig brings Apple's C headers and libSystem.
# shellcheck shell=bash

zig=${CULVERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/culvert}/zig
# mac_compilers ROOT: for everything that cargo starts from here on.
mac_compilers() {
  export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO=/usr/bin/cargo
  CARGO_ZIGBUILD_ZIG_PATH=$(echo "$zig"/lib/python3*/site-packages/ziglang/zig)
  export CARGO_ZIGBUILD_ZIG_PATH
  # Its own folder: another compiler wrote it, and scripts/test runs beside it.
  export CARGO_TARGET_DIR=$1/target/mac
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER RUSTUP_TOOLCHAIN
  # /usr/bin first: a `rustc` found through rustup would obey rust-toolchain.toml.
  export PATH=/usr/bin:$PATH
}
