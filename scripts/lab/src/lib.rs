//! Instruments that measure Culvert; nothing here is installed anywhere. Each is a program of its
//! own in `src/bin`, with a script in `scripts/` that runs it between network namespaces.

pub mod link;
pub mod random;
