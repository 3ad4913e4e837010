//! The menu-bar app. Not written yet: this binary says so and fails, so that nobody ships it.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "error: the menu-bar app is not built yet. hint: `culvert connect` does the same; the app will speak the same protocol to the same helper."
    );
    ExitCode::FAILURE
}
