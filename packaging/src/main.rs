//! The pipeline bundle → sign → pkg → notarize → staple → verify. Not written yet: this binary says
//! so and fails, so that no script takes its silence for a package. `README.md` says what comes.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "error: there are no packages yet. hint: `cargo build --release` makes the binaries; packaging/README.md says what comes."
    );
    ExitCode::FAILURE
}
