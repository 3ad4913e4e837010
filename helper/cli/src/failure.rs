//! How a command fails: one line on stderr, and the exit code of product.md section 6.2.

use std::io;
use std::process::ExitCode;

use culvert_protocol::{ClientError, Code, Event, Problem, code};

/// `status --check`: not connected.
pub(crate) const NOT_CONNECTED: u8 = 3;
/// As clap has it.
const USAGE: u8 = 2;
/// Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// In the catalogue's terms.
    Problem(Problem),
    /// The command line asks for something that cannot be.
    Usage(String),
    /// stdout cannot be written.
    Output(io::Error),
}

impl Failure {
    pub(crate) fn helper_silent() -> Self {
        Self::Problem(Problem::new(code::HELPER).because("The background helper does not answer in time"))
    }

    pub(crate) fn unexpected(event: &Event) -> Self {
        let sentence = format!("The helper gave an answer that does not fit the question: {event:?}");
        Self::Problem(Problem::new(code::HELPER_VERSION).because(sentence))
    }

    /// Why, in one sentence.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Problem(problem) => problem.cause.clone(),
            Self::Usage(sentence) => sentence.clone(),
            Self::Output(error) => error.to_string(),
        }
    }

    /// Says it on stderr. A reader that has gone away (`culvert watch | head -1`) has seen enough.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Output(error) => {
                crate::output::message(&format!("error: stdout cannot be written: {error}"));
                ExitCode::FAILURE
            }
            Self::Usage(sentence) => {
                crate::output::message(&format!("error: {sentence}"));
                ExitCode::from(USAGE)
            }
            Self::Problem(problem) => {
                crate::output::message(&format!("error: {problem}"));
                ExitCode::from(exit_code(problem.code))
            }
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Problem(error.problem())
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The exit code for an E-code.
pub(crate) fn exit_code(number: Code) -> u8 {
    match number {
        code::HELPER | code::HELPER_VERSION => 4,
        code::WRONG_SERVER
        | code::SERVER_EXPIRED
        | code::CLOCK
        | code::REVOKED
        | code::EXPIRED
        | code::UNKNOWN
        | code::LIMIT
        | code::INVITATION => 5,
        code::NO_NETWORK | code::PORTAL | code::NAME | code::NO_ANSWER | code::UDP_BLOCKED => 6,
        code::NOT_CONNECTED => NOT_CONNECTED,
        code::NOT_ENROLLED => 7,
        code::FORBIDDEN | code::LOCKED | code::MANAGED => 8,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_errors_has_its_exit_code() {
        assert_eq!(exit_code(code::HELPER), 4);
        assert_eq!(exit_code(code::REVOKED), 5);
        assert_eq!(exit_code(code::INVITATION), 5);
        assert_eq!(exit_code(code::NO_ANSWER), 6);
        assert_eq!(exit_code(code::NOT_ENROLLED), 7);
        assert_eq!(exit_code(code::FORBIDDEN), 8);
        assert_eq!(exit_code(code::MANAGED), 8);
        assert_eq!(exit_code(code::OVERLAP), 1);
        assert_eq!(exit_code(Code(999)), 1, "a code of a newer helper is a failure");
    }
}
