//! The pipeline that makes the Mac package, on Linux or on a Mac: join → bundle → pkg → verify.
//!
//! `packaging/README.md` has the steps in order. Errors are sentences for the person who builds: every one ends the
//! run, none is told apart by code, so they are `anyhow`'s here.

pub mod archive;
pub mod bom;
pub mod bundle;
pub mod imports;
pub mod names;
pub mod output;
pub mod package;
#[cfg(test)]
mod sample;
pub mod tree;
pub mod universal;
pub mod verify;
pub mod xar;
