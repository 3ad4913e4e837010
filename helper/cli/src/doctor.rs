//! `doctor`: one plain verdict, and every check that led to it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use culvert_protocol::{
    Certainty, Check, CheckId, DOCTOR_WITHIN, Diagnosis, Event, Finding, Outcome, Problem, Request, code,
};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::failure::{self, Failure};
use crate::{dial, output};

pub(crate) async fn doctor(socket: &Path, json: bool) -> Result<ExitCode, Failure> {
    let (diagnosis, code) = diagnose(socket).await?;
    if json {
        output::json(&diagnosis)?;
    } else {
        output::text(&text(&diagnosis))?;
    }
    Ok(ExitCode::from(code))
}

/// The helper's diagnosis, or why there is none; and the exit code for it.
pub(crate) async fn diagnose(socket: &Path) -> Result<(Diagnosis, u8), Failure> {
    let (at, began) = (OffsetDateTime::now_utc(), Instant::now());
    let mut client = match dial(socket).await {
        Ok(client) => client,
        // That there is no helper to ask is a finding.
        Err(Failure::Problem(problem)) if matches!(problem.code, code::HELPER | code::HELPER_VERSION) => {
            let code = failure::exit_code(problem.code);
            let check = Check { check: CheckId::Helper, finding: of(&problem) };
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Ok((Diagnosis::of(at, took_ms, vec![check], ""), code));
        }
        Err(failure) => return Err(failure),
    };
    let patience = DOCTOR_WITHIN + Duration::from_secs(1);
    let answer = timeout(patience, client.request(Request::Doctor)).await.map_err(|_| Failure::helper_silent())??;
    match answer {
        Event::Diagnosis(diagnosis) => {
            let diagnosis = with_version(*diagnosis, client.helper());
            let code = u8::from(diagnosis.verdict.outcome == Outcome::Fail);
            Ok((diagnosis, code))
        }
        other => Err(Failure::unexpected(&other)),
    }
}

/// Only this program knows whether it and the helper are from one package.
fn with_version(diagnosis: Diagnosis, helper: &str) -> Diagnosis {
    let ours = env!("CARGO_PKG_VERSION");
    if helper == ours {
        return diagnosis;
    }
    let sentence = format!("The helper has version {helper}, this program version {ours}");
    let doubt = Finding::warn(sentence).act("Restart the helper, or install both from one package");
    let well = diagnosis.verdict.sentence.clone();
    let mut checks = diagnosis.checks;
    for check in &mut checks {
        if check.check == CheckId::Helper && check.finding.outcome == Outcome::Pass {
            check.finding = doubt.clone();
        }
    }
    Diagnosis::of(diagnosis.at, diagnosis.took_ms, checks, &well)
}

fn of(problem: &Problem) -> Finding {
    Finding::fail(problem.code, problem.cause.trim_end_matches('.'), problem.hint.trim_end_matches('.'))
}

/// The verdict first, then the list.
pub(crate) fn text(diagnosis: &Diagnosis) -> String {
    let mut lines = vec![sentence(&diagnosis.verdict)];
    if let Some(action) = &diagnosis.verdict.action {
        lines.push(format!("What to do: {action}."));
    }
    lines.push(String::new());
    for Check { check, finding } in &diagnosis.checks {
        let outcome = match finding.outcome {
            Outcome::Pass => "ok",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
            Outcome::NotChecked => "-",
        };
        lines.push(format!("{:>2}  {outcome:<5} {:<29} {}", check.number(), check.title(), finding.sentence));
    }
    lines.join("\n")
}

fn sentence(finding: &Finding) -> String {
    let seems = if finding.certainty == Certainty::Inferred { "It seems: " } else { "" };
    let code = finding.code.map(|code| format!(" [{code}]")).unwrap_or_default();
    format!("{seems}{}.{code}", finding.sentence.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_with_what_to_do_and_every_check_has_its_line() {
        let fail = Finding::fail(code::NO_ANSWER, "No answer from 203.0.113.7:443", "Try another network").inferred();
        let found = vec![Check { check: CheckId::Reach, finding: fail }];
        let shown = text(&Diagnosis::of(OffsetDateTime::UNIX_EPOCH, 1, found, ""));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "It seems: No answer from 203.0.113.7:443. [E104]");
        assert_eq!(lines[1], "What to do: Try another network.");
        assert_eq!(lines.len(), 3 + 15);
        assert_eq!(lines[9], " 7  FAIL  Gateway reachable over UDP    No answer from 203.0.113.7:443");
    }

    #[test]
    fn a_helper_of_another_version_is_a_doubt_and_hides_no_failure() {
        let well = Check { check: CheckId::Helper, finding: Finding::pass("Version 9.9.9 is running") };
        let shown = with_version(Diagnosis::of(OffsetDateTime::UNIX_EPOCH, 1, vec![well.clone()], "well"), "9.9.9");
        assert_eq!(shown.verdict.outcome, Outcome::Warn);
        let fail = Check { check: CheckId::Name, finding: Finding::fail(code::NAME, "No address", "Wait") };
        let shown = with_version(Diagnosis::of(OffsetDateTime::UNIX_EPOCH, 1, vec![well, fail], "well"), "9.9.9");
        assert_eq!(shown.verdict.code, Some(code::NAME));
        assert_eq!(shown.checks[0].finding.outcome, Outcome::Warn);
    }
}
